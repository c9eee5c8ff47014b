"""What an adapter is listed by: a few facts, taken from its folder once and kept in the index."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Summary:
    """An adapter in one line.

    Attributes:
        modules: how many are adapted.
        ranks: smallest and largest rank.
        parameters: numbers in all A and B.
        base: fingerprint of the base as recorded, its name alone where that is all there is.
        data_sha256: hash of the rows it was trained on, or None.
        metrics: recorded losses (nats per token) and scores, nested ones with dotted names.
        model: what the base was called by the run that made it; a path there, perhaps.
        mapping: how the rows were mapped that it was trained on, by option; empty where their columns
            were recognised, None in entries from before it was kept.
        parents: what it was trained on from or combined of: names and hashes, as recorded.
        headline: which score fits its rows best; '' where nothing says.
    """

    modules: int
    ranks: tuple[int, int]
    parameters: int
    base: Mapping[str, Any] = field(default_factory=dict)
    data_sha256: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    model: str | None = None
    parents: tuple[Mapping[str, Any], ...] = ()
    mapping: Mapping[str, str] | None = None
    headline: str = ""

    @property
    def base_name(self) -> str:
        """The base, by the name it was asked for; '' where nothing says."""
        return str(self.base.get("name") or "")

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Summary":
        """The inverse of `to_dict`."""
        return cls(**{**raw, "ranks": tuple(raw["ranks"]), "parents": tuple(raw["parents"])})


def summarise(folder: Path) -> Summary:
    """Check an adapter folder as loading does, as far as no model is needed, and sum it up.

    Raises:
        AdapterError: the folder is no adapter, a file was changed after it was recorded, a tensor
            is missing, extra, misshapen or not finite.
    """
    from lorakit.adapters.asking import asking_in, mapping_in
    from lorakit.adapters.pairs import read_stored  # torch comes with it

    info = read_stored(folder).info
    recorded = info.provenance or {}
    return Summary(
        modules=len(info.ranks),
        ranks=(min(info.ranks.values()), max(info.ranks.values())),
        parameters=info.trainable_parameters,
        base=dict(info.base) if info.base else {"name": info.base_name},
        data_sha256=recorded.get("data_sha256"),
        metrics=numbers(recorded.get("metrics")),
        model=asking_in(recorded).get("model"),
        mapping=mapping_in(recorded),
        parents=tuple(p for p in recorded.get("parents") or () if isinstance(p, Mapping)),
        headline=headline_in(recorded.get("metrics")),
    )


def numbers(metrics: Any, prefix: str = "") -> dict[str, float]:
    """The finite numbers of a mapping, nested ones with dotted names.

    >>> numbers({"eval_loss": 1.5, "scores": {"f1": 0.5}, "note": "x"})
    {'eval_loss': 1.5, 'scores.f1': 0.5}
    """
    found: dict[str, float] = {}
    if isinstance(metrics, Mapping):
        for key, value in metrics.items():
            if isinstance(value, Mapping):
                found |= numbers(value, f"{prefix}{key}.")
            elif isinstance(value, bool) or not isinstance(value, int | float):
                continue
            elif math.isfinite(value):
                found[f"{prefix}{key}"] = float(value)
    return found


def headline_in(metrics: Any) -> str:
    """Which of the recorded scores fits the rows best; '' where nothing says."""
    named = metrics.get("headline") if isinstance(metrics, Mapping) else None
    return named if isinstance(named, str) else ""
