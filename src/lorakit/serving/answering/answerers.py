"""What answers windows of prompts: the server's engine, or transformers' own generation in batches.

The engine batches continuously: a row joins when another has ended, so that long answers keep no short
one waiting. Between two windows it holds nothing that could change an answer: no running sequence, and
no keys and values of earlier prompts. So what a window's answers are computed with depends on the
window alone. Where a model or an adapter cannot be served, batches of prompts of like length do the
same more slowly.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lorakit.data import Template
from lorakit.errors import LorakitError
from lorakit.execution.choices import score_choices
from lorakit.execution.generate import decode, end_tokens, generate
from lorakit.execution.stepping import open_blocks
from lorakit.run.session import Session
from lorakit.serving.answering.asked import AskedRow
from lorakit.serving.answers import CompletionEvent, Prompt
from lorakit.serving.cache import size_for
from lorakit.serving.catalog import Catalog, Model
from lorakit.serving.engine import Engine
from lorakit.serving.forward import Forward, cell_bytes
from lorakit.serving.sampling import Sampling
from lorakit.serving.spec import EngineSpec

BASE, ADAPTER = "base", "adapter"
_BATCH = 16
_NOT_FINITE = "the model's logits are not finite"
_CACHE_BYTES = 4e9
_DIGITS = 6


@dataclass(frozen=True)
class RowAnswer:
    """What became of one row.

    Attributes:
        text: the answer without white space around it; None where there is none.
        probability: of the answer by the model's own distribution, end token included; with choices
            of the label among them. Rounded to 6 significant digits.
        finished: False where the limit of tokens came first.
        error: why there is no answer.
        shares: with choices, the probability of each, in their order.
    """

    text: str | None
    probability: float | None
    finished: bool = True
    error: str | None = None
    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Decoding:
    """How answers are generated.

    Attributes:
        most: tokens of the longest.
        temperature, top_p, top_k: as in `lorakit.serving.sampling.Sampling`.
        seed: each row draws from a generator of its own, seeded by this and its place in the file.
    """

    most: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


class Answerer(Protocol):
    """Answers windows of prompts, each window apart from all others."""

    @property
    def way(self) -> str:
        """How answers are computed, in words; recorded, because other ways differ in last bits."""

    def answers(
        self, rows: Sequence[AskedRow], first: int, done: Callable[[int], None]
    ) -> list[RowAnswer]:
        """One answer for each row, in their order.

        Args:
            rows: with their prompts.
            first: the place of the first in the file, counted from 0.
            done: told how many are answered.
        """

    def close(self) -> None:
        """Let go of threads and memory."""


class EngineAnswerer:
    """Answers by the server's own engine, in this process and thread.

    Args:
        session: a base without an adapter; it belongs to the engine from then on.
        folder: of an adapter, None for the base alone.
        template: how prompts were written, which says what ends an answer.
        decoding: how answers are generated.
        longest: tokens of the longest prompt.
        window: the most rows that are asked for at once.
        rank: the highest of the adapter.
        force: use an adapter of another base.

    Raises:
        ModelError: the base cannot be served.
        AdapterError: the adapter cannot be held beside it.
    """

    def __init__(
        self,
        session: Session,
        folder: Path | None,
        template: Template,
        decoding: Decoding,
        longest: int,
        *,
        window: int,
        rank: int = 1,
        force: bool = False,
    ) -> None:
        self._tokenizer, self._decoding = session.tokenizer, decoding
        running = 64 if session.model.device.type == "cpu" else 256
        largest = size_for(longest + decoding.most)
        spec = EngineSpec(
            slots=1,
            slot_rank=rank,
            max_running=running,
            max_queue=window,
            step_tokens=max(512, running),
            max_prompt=longest,
            max_output=decoding.most,
        )
        blocks, layers = open_blocks(session.model)
        most = max(int(_CACHE_BYTES / cell_bytes(layers, session.model.dtype)) // largest, 1)
        cells = min(running, most) * largest
        forward = Forward(blocks, layers, session.model, spec, cells)
        folders = {ADAPTER: folder} if folder is not None else {}
        catalog = Catalog(
            *(BASE, session.identity, template, forward.bank), folders=folders, force=force
        )
        self._model: Model = catalog.resolve(BASE if folder is None else ADAPTER)
        # Staged once, now: what is wrong with it is said here, and no step waits for it.
        staged = None if self._model.load is None else self._model.load()
        self._load = lambda: staged
        self._ends = frozenset(end_tokens(session.model, session.tokenizer, template))
        # A clock that stands still: no decision depends on how long something took.
        self._engine = Engine(
            forward, session.tokenizer, spec, largest, self._take, clock=lambda: 0.0
        )
        self._events: list[tuple[int, CompletionEvent]] = []
        self.way = f"engine, {running} at once, {cells} cells of {largest}"

    def answers(
        self, rows: Sequence[AskedRow], first: int, done: Callable[[int], None]
    ) -> list[RowAnswer]:
        """See `Answerer`."""
        wish = self._decoding
        sampling = Sampling(
            *(wish.temperature, wish.top_p, wish.top_k, wish.seed),
            logprobs=0,
        )
        for place, asked in enumerate(rows):
            prompt = Prompt(
                *(asked.ids, self._model.key, self._load, f"row {first + place}", wish.most, self._ends),
                sampling=sampling,
                choice=first + place,
            )
            self._engine.submit([prompt], place)
        tokens: list[list[int]] = [[] for _ in rows]
        logs = [0.0] * len(rows)
        made: dict[int, RowAnswer] = {}
        while len(made) < len(rows):
            self._engine.step()
            for place, event in self._events:
                for token in event.tokens:
                    logs[place] += token.logprob or 0.0
                    if token.id not in self._ends:
                        tokens[place].append(token.id)
                if event.finish is not None:
                    made[place] = self._answer(event, tokens[place], logs[place], first + place)
            if self._events:
                done(len(made))
            self._events.clear()
        self._engine.cache.forget(self._model.key)
        return [made[place] for place in range(len(rows))]

    def close(self) -> None:
        """See `Answerer`."""
        self._engine.stop()

    def _take(self, events: list[tuple[Any, CompletionEvent]]) -> None:
        self._events += events

    def _answer(
        self, event: CompletionEvent, ids: list[int], logprob: float, place: int
    ) -> RowAnswer:
        if event.finish in ("stop", "length"):
            text = decode(self._tokenizer, ids)
            return answer_of(text, logprob, finished=event.finish == "stop")
        if "not finite" in event.text:
            return RowAnswer(None, None, error=_NOT_FINITE)
        raise LorakitError(f"row {place + 1}: {event.text}")


class BatchAnswerer:
    """Answers by transformers' own generation, prompts of like length in a batch.

    Args:
        session: the model, its adapter attached.
        decoding: how answers are generated.
    """

    way = f"transformers, batches of {_BATCH}"

    def __init__(self, session: Session, decoding: Decoding) -> None:
        self._session, self._decoding = session, decoding

    def answers(
        self, rows: Sequence[AskedRow], first: int, done: Callable[[int], None]
    ) -> list[RowAnswer]:
        """See `Answerer`."""
        session, wish = self._session, self._decoding
        prompts = [row.ids for row in rows]
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        made: dict[int, RowAnswer] = {}
        for begin in range(0, len(order), _BATCH):
            members = order[begin : begin + _BATCH]
            answers = generate(
                *(session.model, session.tokenizer, [prompts[i] for i in members]),
                template=session.template,
                max_new_tokens=wish.most,
                temperature=wish.temperature,
                top_p=wish.top_p,
                top_k=wish.top_k,
                seed=_seed(wish.seed, first + begin),
                batch_size=_BATCH,
                logprobs=True,
            )
            for i, answer in zip(members, answers, strict=True):
                assert answer.logprob is not None
                made[i] = answer_of(answer.text, answer.logprob, finished=answer.finished)
            done(len(made))
        return [made[i] for i in range(len(prompts))]

    def close(self) -> None:
        """See `Answerer`."""


class ChoiceAnswerer:
    """Answers with one of a few labels: the likeliest, see `lorakit.execution.choices`.

    Args:
        session: the model, its adapter attached.
        choices: the labels.
        lead: white space before a label, as it was trained.
    """

    way = f"choices, batches of {_BATCH}"

    def __init__(self, session: Session, choices: Sequence[str], lead: str) -> None:
        self._session, self._choices, self._lead = session, tuple(choices), lead

    def answers(
        self, rows: Sequence[AskedRow], first: int, done: Callable[[int], None]
    ) -> list[RowAnswer]:
        """See `Answerer`."""
        session, made = self._session, list[RowAnswer]()
        for begin in range(0, len(rows), _BATCH):
            examples = [r.example for r in rows[begin : begin + _BATCH] if r.example is not None]
            scores = score_choices(
                *(session.model, session.tokenizer, session.template, examples, self._choices),
                lead=self._lead,
            )
            for label, p_C in zip(scores.picked, scores.probabilities.tolist(), strict=True):
                if not all(map(math.isfinite, p_C)):
                    made.append(RowAnswer(None, None, error=_NOT_FINITE))
                    continue
                shares = tuple(map(rounded, p_C))
                made.append(RowAnswer(label, max(shares), shares=shares))
            done(len(made))
        return made

    def close(self) -> None:
        """See `Answerer`."""


def answer_of(text: str, logprob: float, *, finished: bool) -> RowAnswer:
    """An answer as it is written: without white space around it, its probability rounded."""
    if not math.isfinite(logprob):
        return RowAnswer(None, None, error=_NOT_FINITE)
    return RowAnswer(text.strip(), rounded(math.exp(logprob)), finished)


def rounded(probability: float) -> float:
    """To 6 significant digits: more say nothing, and would differ between machines."""
    return float(f"{probability:.{_DIGITS}g}")


def _seed(seed: int, place: int) -> int:
    digest = hashlib.sha256(f"{seed}/{place}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
