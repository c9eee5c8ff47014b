"""Answers by the server's own engine: rows join and leave its steps one by one.

A row joins when another has ended, so that long answers keep no short one waiting. Between two
windows the engine holds nothing that could change an answer: no running sequence, and no keys and
values of earlier prompts. So what a window's answers are computed with depends on the window alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorakit.data import Template
from lorakit.errors import LorakitError
from lorakit.execution.generate import decode, end_tokens
from lorakit.execution.stepping import open_blocks
from lorakit.run.session import Session
from lorakit.serving.answering.asked import AskedRow
from lorakit.serving.answering.row_answer import NOT_FINITE, RowAnswer, RowDecoding, answer_of
from lorakit.serving.answers import CompletionEvent, Prompt
from lorakit.serving.cache import size_for
from lorakit.serving.catalog import Catalog, Model
from lorakit.serving.engine import Engine
from lorakit.serving.forward import Forward, cell_bytes
from lorakit.serving.room import Room
from lorakit.serving.sampling import Sampling
from lorakit.serving.spec import EngineSpec

_BASE, _ADAPTER = "base", "adapter"
_CACHE_BYTES = 4e9


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
        decoding: RowDecoding,
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
        blocks, layers = open_blocks(session.model, longest + decoding.most)
        most = max(int(_CACHE_BYTES / cell_bytes(layers, session.model.dtype)) // largest, 1)
        room = Room(min(running, most) * largest)
        forward = Forward(blocks, layers, session.model, spec, room)
        folders = {_ADAPTER: folder} if folder is not None else {}
        catalog = Catalog(
            *(_BASE, session.identity, template, forward.bank), folders=folders, force=force
        )
        self._model: Model = catalog.resolve(_BASE if folder is None else _ADAPTER)
        # Staged once, now: what is wrong with it is said here, and no step waits for it.
        staged = None if self._model.load is None else self._model.load()
        self._load = lambda: staged
        self._ends = frozenset(end_tokens(session.model, session.tokenizer, template))
        # A clock that stands still: no decision depends on how long something took.
        self._engine = Engine(
            forward, session.tokenizer, spec, largest, self._take, clock=lambda: 0.0
        )
        self._events: list[tuple[int, CompletionEvent]] = []
        self.way = f"engine, {running} at once, {room.positions} cells of {largest}"

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
            acts = self._model.on(asked.ids)
            prompt = Prompt(
                *(
                    asked.ids,
                    acts.key,
                    self._load,
                    f"row {first + place}",
                    wish.most,
                    self._ends,
                ),
                sampling=sampling,
                choice=first + place,
                unadapted=acts.unadapted,
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
            return RowAnswer(None, None, error=NOT_FINITE)
        raise LorakitError(f"row {place + 1}: {event.text}")
