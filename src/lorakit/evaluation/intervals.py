"""Intervals of scores over rows, and of the change from one set of answers to another.

Scores with a value for each row have the interval of their mean (`lorakit.evaluation.bootstrap`), within
the range that a score has, so that eight right answers of eight are not certain. Of BLEU and chrF, which
are no mean of rows, it is that of their rows' values, around the value of the whole set. Macro F1 has no
value by row: rows are drawn with replacement, it is computed again for each draw, and its interval runs
between the quantiles (Efron 1979). Of few rows these are too close, and of rows that are all right or all
wrong they are one point: no end is nearer than that of the accuracy of the same answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lorakit.evaluation.bootstrap import Interval, bootstrap_mean
from lorakit.evaluation.crossed import Bounds
from lorakit.evaluation.labels import accuracy
from lorakit.evaluation.scores import Scores

Floats = NDArray[np.float64]
LEVEL = 0.95
_DRAWS = 2000
_AT_ONCE = 1 << 22


def intervals(
    scores: Scores, predictions: Sequence[str], references: Sequence[str]
) -> dict[str, Interval]:
    """Of each metric that has one, by its name; none of fewer than two rows.

    Args:
        scores: of these predictions.
        predictions, references: as they were scored, one text a row.
    """
    if len(references) < 2:
        return {}
    found = {}
    for metric in scores:
        if metric.rows is not None:
            found[metric.name] = _of_rows(metric.value, metric.rows, metric.range)
        elif metric.name == "macro_f1":
            drawn_B = _macro_f1(predictions, references)
            found[metric.name] = _between_quantiles(
                metric.value, drawn_B, _right(predictions, references), metric.range
            )
    return found


def changes(
    before: tuple[Scores, Sequence[str]],
    after: tuple[Scores, Sequence[str]],
    references: Sequence[str],
) -> dict[str, Interval]:
    """Of after - before, row by row, for each metric that both have; none of fewer than two rows.

    Args:
        before, after: scores and the predictions that they are of.
        references: of both.
    """
    if len(references) < 2:
        return {}
    found = {}
    for metric in after[0]:
        if metric.name not in before[0].values:
            continue
        other = before[0][metric.name]
        change, most = metric.value - other.value, metric.range[1] - metric.range[0]
        if metric.rows is not None and other.rows is not None:
            by_row = np.array(metric.rows) - np.array(other.rows)
            found[metric.name] = _of_rows(change, by_row, (-most, most))
        elif metric.name == "macro_f1":
            drawn_B = _macro_f1(after[1], references) - _macro_f1(before[1], references)
            right = _right(after[1], references) - _right(before[1], references)
            found[metric.name] = _between_quantiles(change, drawn_B, right, (-most, most))
    return found


def _of_rows(value: float, rows: Sequence[float] | Floats, bounds: Bounds) -> Interval:
    """The interval of the rows' mean, moved to the value of the whole set where that is another."""
    generator = np.random.default_rng(0)
    of_mean = bootstrap_mean(rows, generator=generator, level=LEVEL, bounds=bounds)
    apart = value - of_mean.mean
    low, high = (min(max(end + apart, bounds[0]), bounds[1]) for end in (of_mean.low, of_mean.high))
    return replace(of_mean, mean=value, low=low, high=high)


def _between_quantiles(value: float, drawn_B: Floats, right_N: Floats, bounds: Bounds) -> Interval:
    """Between the quantiles of the draws, and nowhere nearer than the interval of the rows' accuracy."""
    low, high = np.quantile(drawn_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    of_rows = _of_rows(value, right_N, bounds)
    return replace(
        of_rows,
        low=min(float(low), of_rows.low),
        high=max(float(high), of_rows.high),
        resamples=len(drawn_B),
    )


def _right(predictions: Sequence[str], references: Sequence[str]) -> Floats:
    """1.0 for each row whose label is right, else 0.0."""
    return np.array(accuracy(predictions, references)[1])


def _counts(n: int) -> Iterator[Floats]:
    """How often each of n rows is in each of some draws, (b, n), in parts of bounded size."""
    generator = np.random.default_rng(0)
    b = max(1, _AT_ONCE // n)
    for first in range(0, _DRAWS, b):
        picks = generator.integers(n, size=(min(b, _DRAWS - first), n))
        yield np.stack([np.bincount(row, minlength=n) for row in picks]).astype(np.float64)


def _macro_f1(predictions: Sequence[str], references: Sequence[str]) -> Floats:
    """F1 = 2·TP / (2·TP + FP + FN) of each label that a draw has, averaged over them."""
    wanted, given = ([text.strip() for text in texts] for texts in (references, predictions))
    labels = sorted(set(wanted))
    is_wanted_NK = np.array([[w == label for label in labels] for w in wanted], dtype=np.float64)
    is_given_NK = np.array([[g == label for label in labels] for g in given], dtype=np.float64)
    values = []
    for counts_bN in _counts(len(wanted)):
        right = counts_bN @ (is_wanted_NK * is_given_NK)
        there, said = counts_bN @ is_wanted_NK, counts_bN @ is_given_NK
        f1 = np.divide(2 * right, there + said, out=np.zeros_like(right), where=there + said > 0)
        values.append((f1 * (there > 0)).sum(1) / (there > 0).sum(1))
    return np.concatenate(values)
