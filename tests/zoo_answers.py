"""The answers of an architecture, generated and served, against the oracle's greedy ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.adapters.pairs import read_stored
from lorakit.execution.generate import end_tokens, generate
from lorakit.serving.answers import Prompt
from lorakit.serving.cache import size_for
from lorakit.serving.engine import Engine
from lorakit.serving.forward import open_forward
from lorakit.serving.sampling import Sampling
from lorakit.serving.spec import EngineSpec
from zoo_oracle import LOGITS_CLOSE, DiffersError, Oracle, random_rows
from zoo_subject import Architecture, load

PROMPTS = (9, 14, 23, 37)
NEW = 10
SERVING = EngineSpec(
    slots=3, slot_rank=8, cache_gb=0.02, max_running=8, step_tokens=24, max_prompt=64, max_output=32
)


def check_answer(
    what: str, oracle: Oracle, ids: Sequence[int], answer: Sequence[int], ends: frozenset[int]
) -> None:
    """A greedy answer is the oracle's, up to a tie: two logits nearer than rounding.

    Each token is the likeliest after those before it, and an end token follows the last one of an
    answer that is shorter than it may be.
    """
    for place, row in enumerate(oracle.chosen_from(ids, answer)):
        best = int(row.argmax())
        if place == len(answer):
            if len(answer) < NEW and best not in ends:
                raise DiffersError(f"{what}: it ends after {place} tokens, before {best}")
            return
        token = answer[place]
        if token == best:
            continue
        if row[best] - row[token] <= LOGITS_CLOSE * row.abs().max():
            return
        raise DiffersError(f"{what}: token {place + 1} is {token} in place of {best}")


def check_generation(subject: Architecture, model: Any, tokenizer: Any, oracle: Oracle) -> None:
    """Greedy answers of a batch equal each alone."""
    ends = frozenset(end_tokens(model, tokenizer))
    prompts = [row.tolist() for row in random_rows(PROMPTS, seed=2)]
    answers = generate(model, tokenizer, prompts, max_new_tokens=NEW)
    for prompt, answer in zip(prompts, answers, strict=True):
        check_answer(f"prompt of {len(prompt)}", oracle, prompt, answer.ids, ends)


class Asked(Engine):
    """lorakit's engine without its thread, and the token ids of every answer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        largest = size_for(SERVING.max_prompt + SERVING.max_output)
        self.ids: dict[Any, list[int]] = {}
        self.failed: dict[Any, str] = {}
        forward = open_forward(model, SERVING, largest)
        super().__init__(forward, tokenizer, SERVING, largest, self._keep)

    def _keep(self, events: list[tuple[Any, Any]]) -> None:
        for tag, event in events:
            self.ids.setdefault(tag, []).extend(token.id for token in event.tokens)
            if event.finish not in (None, "stop", "length"):
                self.failed[tag] = event.text

    def settle(self) -> None:
        """Run until nothing is left to do."""
        for _ in range(500):
            self.step()
            for future in list(self._loading.values()):
                future.exception()
            if not self._answers and self._inbox.empty():
                return
        raise DiffersError("the engine does not come to rest")


def check_serving(subject: Architecture, oracles: Mapping[str, tuple[Path | None, Oracle]]) -> None:
    """A mixed batch of two adapters and the base, by the engine, equals each alone."""
    model, tokenizer = load(subject)
    ends = frozenset(end_tokens(model, tokenizer))
    engine = Asked(model, tokenizer)
    subject.facts["served_by"] = type(engine.forward.blocks).__name__
    rows = random_rows([*PROMPTS, *PROMPTS[:2]], seed=3)
    asked = [(key, rows[i].tolist()) for i, key in enumerate(2 * list(oracles))]
    for number, (key, ids) in enumerate(asked):
        folder = oracles[key][0]
        stage = (
            None if folder is None else lambda at=folder: engine.forward.bank.stage(read_stored(at))
        )
        prompt = Prompt(
            ids=ids,
            key=key,
            load=stage,
            name=key or "base",
            most=NEW,
            ends=ends,
            sampling=Sampling(temperature=0.0),
        )
        engine.submit([prompt], number)
    engine.settle()
    for number, (key, ids) in enumerate(asked):
        if number in engine.failed:
            raise DiffersError(f"{key or 'base'}, prompt of {len(ids)}: {engine.failed[number]}")
        answer = [i for i in engine.ids.get(number, []) if i not in ends]
        check_answer(f"{key or 'base'}, prompt of {len(ids)}", oracles[key][1], ids, answer, ends)
