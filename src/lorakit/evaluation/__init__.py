"""Scores of generated text, and confidence intervals for them."""

from lorakit.evaluation.bootstrap import Interval, bootstrap_difference, bootstrap_mean
from lorakit.evaluation.crossed import CrossedInterval, crossed_mean, crossed_statistic
from lorakit.evaluation.metrics import METRICS, MetricScore, Scores, score

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
