"""Scores of answers, as values: each metric on one scale, the one that fits best first."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lorakit.errors import did_you_mean

REACHED = "answers reached the limit"
"""What every sentence about truncated answers says."""


@dataclass(frozen=True)
class MetricScore:
    """One metric over n rows.

    `value` is a share of the best possible, 0 to 1, whatever scale a metric is published on (BLEU
    and chrF on 0 to 100). `rows` has one value a row in the same unit, for paired intervals, or
    is None where rows have none; `mean_of_rows` says that `value` is exactly their mean.
    Higher is better, always, and answers that equal their references have 1.
    """

    name: str
    value: float
    n: int
    rows: tuple[float, ...] | None
    mean_of_rows: bool

    @property
    def unit(self) -> Literal["share"]:
        """One scale for all."""
        return "share"

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value that are possible."""
        return (0.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "value": self.value,
            "n": self.n,
            "unit": self.unit,
            "range": list(self.range),
            "rows": None if self.rows is None else list(self.rows),
            "mean_of_rows": self.mean_of_rows,
        }


@dataclass(frozen=True)
class Scores:
    """Metrics over the same rows, the one that fits the references best first, and why these.

    `left_out` says which metrics would fit as well and what they need; empty where there are none.
    `limit` is how many new tokens an answer could have, None where nobody generated; `reached` how
    many answers ended there and not by themselves.
    """

    metrics: tuple[MetricScore, ...]
    why: str
    left_out: str = ""
    limit: int | None = None
    reached: int = 0

    def __getitem__(self, name: str) -> MetricScore:
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(f"{name!r} was not scored; {did_you_mean(name, self.values)}")

    def __iter__(self) -> Iterator[MetricScore]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    @property
    def headline(self) -> MetricScore:
        """The one that fits the references best: what is shown where there is room for one."""
        return self.metrics[0]

    @property
    def cut(self) -> str:
        """A sentence where answers were truncated at the limit; '' where none was.

        >>> Scores((MetricScore("f1", 0.5, 8, None, False),), "", limit=32, reached=6).cut
        '6 of 8 answers reached the limit of 32 tokens and were scored as far as they go'
        """
        if not self.reached:
            return ""
        answers = self.metrics[0].n if self.metrics else self.reached
        return (
            f"{self.reached} of {answers} {REACHED} of {self.limit} tokens and were scored as far as "
            "they go"
        )

    @property
    def values(self) -> dict[str, float]:
        """Name -> value, in order, as in `result.json`."""
        return {metric.name: metric.value for metric in self.metrics}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, row values included."""
        return {"why": self.why, "metrics": [metric.to_dict() for metric in self.metrics]}
