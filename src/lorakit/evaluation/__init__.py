"""Scores of generated text, and confidence intervals for them.

The names below are loaded when first used: verdicts and pages need no numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.evaluation.bootstrap import Interval, bootstrap_difference, bootstrap_mean
    from lorakit.evaluation.crossed import CrossedInterval, crossed_mean, crossed_statistic
    from lorakit.evaluation.metrics import METRICS, MetricScore, Scores, score

_HOMES = {
    "METRICS": "metrics",
    "CrossedInterval": "crossed",
    "Interval": "bootstrap",
    "MetricScore": "metrics",
    "Scores": "metrics",
    "bootstrap_difference": "bootstrap",
    "bootstrap_mean": "bootstrap",
    "crossed_mean": "crossed",
    "crossed_statistic": "crossed",
    "score": "metrics",
}

__all__ = [
    "METRICS",
    "CrossedInterval",
    "Interval",
    "MetricScore",
    "Scores",
    "bootstrap_difference",
    "bootstrap_mean",
    "crossed_mean",
    "crossed_statistic",
    "score",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
