"""The answer to one row, how it is generated, and what every way to generate it has in common."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lorakit.serving.answering.asked import AskedRow

NOT_FINITE = "the model's logits are not finite"
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
class RowDecoding:
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


def answer_of(text: str, logprob: float, *, finished: bool) -> RowAnswer:
    """An answer as it is written: without white space around it, its probability rounded."""
    if not math.isfinite(logprob):
        return RowAnswer(None, None, error=NOT_FINITE)
    return RowAnswer(text.strip(), rounded(math.exp(logprob)), finished)


def rounded(probability: float) -> float:
    """To 6 significant digits: more say nothing, and would differ between machines."""
    return float(f"{probability:.{_DIGITS}g}")
