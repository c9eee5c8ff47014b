"""Scores that were measured of an adapter later on, and which one is shown where there is room for one.

The store keeps them in its index. Of a folder that lies elsewhere they stand in `lorakit_scores.json`
beside the adapter's files: no part of its content, so its content id stays, and other readers ignore it.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePath
from typing import Any

from lorakit.errors import AdapterError
from lorakit.files.whole import write_json

FILE = "lorakit_scores.json"
_FORMAT = 1
# Of older adapters nothing says which of their scores fits best; and these two were kept in points.
_ORDER = ("call_match", "field_accuracy", "numeric_answer", "accuracy", "f1", "exact_match", "chrf")
_POINTS = ("bleu", "chrf")
NAMES = {
    "exact_match": "exact match",
    "f1": "token F1",
    "bleu": "BLEU",
    "chrf": "chrF",
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "field_accuracy": "fields right",
    "json_match": "whole object right",
    "json_validity": "valid JSON",
    "numeric_answer": "final number right",
    "call_match": "calls right",
    "call_names": "functions right",
}
"""Scores by the names that a person reads, everywhere the same."""


def score_name(name: str) -> str:
    """A score's name for a reader."""
    return NAMES.get(name, name.replace("_", " "))


@dataclass(frozen=True)
class Measurement:
    """Scores of an adapter on some rows.

    Attributes:
        at: when, in seconds since 1970.
        data: the rows' files, by their last names.
        data_sha256: hash of the rows' content.
        rows: how many.
        headline: the score that fits the rows best; '' where only the loss was measured.
        scores: each by its name, a share of the best possible, 0 to 1.
        intervals: (low, high) of those that have one.
        level: of the intervals.
        eval_loss: nats per token.
        choice_accuracy: how often the right label was the likeliest; None where it was not asked.
    """

    at: float
    data: tuple[str, ...]
    data_sha256: str
    rows: int
    headline: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    level: float = 0.95
    eval_loss: float | None = None
    choice_accuracy: float | None = None

    @classmethod
    def of_result(cls, result: Mapping[str, Any], data: Sequence[str]) -> "Measurement":
        """What is kept of the figures of `lorakit eval`."""
        spread = result["intervals"]
        return cls(
            time.time(),
            tuple(PurePath(name).name for name in data),
            result["data_sha256"],
            result["rows"],
            result["headline"] or "",
            dict(result["scores"]),
            {name: (one["low"], one["high"]) for name, one in spread.items()},
            next((one["level"] for one in spread.values()), 0.95),
            result["eval_loss"] if math.isfinite(result["eval_loss"]) else None,
            result["choices"]["accuracy"] if result["choices"] else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Measurement":
        """The inverse of `to_dict`; what a newer lorakit keeps beside is left out.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is none.
        """
        known = {one.name: raw[one.name] for one in fields(cls) if one.name in raw}
        known["data"] = tuple(raw["data"])
        spread = raw.get("intervals", {}).items()
        known["intervals"] = {name: (float(low), float(high)) for name, (low, high) in spread}
        known["scores"] = {name: float(value) for name, value in raw.get("scores", {}).items()}
        return cls(**known)


@dataclass(frozen=True)
class Headline:
    """The score that is shown of an adapter.

    Attributes:
        name: of the measure; 'loss' where there is no score.
        value: a share of the best possible, 0 to 1; of the loss nats per token.
        low, high: its interval, where it has one.
        rows: how many it was measured on, where that is known.
        at: when it was measured; None for the scores of its own training.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    rows: int | None = None
    at: float | None = None

    def __str__(self) -> str:
        if self.name == "loss":
            return f"loss {self.value:.4f}"
        return f"{score_name(self.name)} {self.value:.3f}"


def headline(
    metrics: Mapping[str, float], name: str = "", measured: Sequence[Measurement] = ()
) -> Headline | None:
    """The one score of an adapter that every listing shows.

    What was measured last and recorded counts before what the training itself measured on a few
    samples; of several scores the one that fits the rows best; without any the held-out loss.

    Args:
        metrics: as the training recorded them, scores as 'scores.NAME'.
        name: of the score that fits best, as the training recorded it; '' of older adapters.
        measured: recorded later, the newest last.
    """
    for one in reversed(measured):
        if one.headline and one.headline in one.scores:
            low, high = one.intervals.get(one.headline, (None, None))
            return Headline(one.headline, one.scores[one.headline], low, high, one.rows, one.at)
    scores = scores_of(metrics, name)
    if scores:
        first = name if name in scores else min(scores, key=_place)
        return Headline(first, scores[first])
    for one in reversed(measured):
        if one.eval_loss is not None:
            return Headline("loss", one.eval_loss, rows=one.rows, at=one.at)
    return Headline("loss", metrics["eval_loss"]) if "eval_loss" in metrics else None


def scores_of(metrics: Mapping[str, float], name: str = "") -> dict[str, float]:
    """The scores among recorded metrics, all on one scale, the one that fits best first.

    Args:
        metrics, name: as of `headline`.
    """
    found = {
        key.removeprefix("scores."): value
        for key, value in metrics.items()
        if key.startswith("scores.")
    }
    if not name:
        found = {k: v / 100 if k in _POINTS else v for k, v in found.items()}
    return dict(sorted(found.items(), key=lambda item: (item[0] != name, _place(item[0]))))


def _place(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)


def read_measurements(folder: Path, content: str) -> tuple[Measurement, ...]:
    """What was recorded of an adapter folder, oldest first; () where the file is of another content.

    Args:
        folder: of the adapter.
        content: its content id: a folder may have been written anew since.

    Raises:
        AdapterError: the file is broken.
    """
    path = folder / FILE
    if not path.is_file():
        return ()
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.get("content") != content:
            return ()
        return tuple(Measurement.from_dict(one) for one in raw["measured"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{path} is broken ({error}): remove it, and record again") from None


def add_measurement(folder: Path, content: str, measured: Measurement) -> None:
    """Keep a measurement beside an adapter's files.

    Raises:
        AdapterError: the file there is broken.
        OutputError: it cannot be written.
    """
    every = (*read_measurements(folder, content), measured)
    told = {"format": _FORMAT, "content": content, "measured": [one.to_dict() for one in every]}
    write_json(folder / FILE, told)
