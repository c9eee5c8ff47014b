"""Intervals of scores over rows, and of the change from one set of answers to another.

Rows are drawn with replacement B times, and the score is taken of each draw; the interval runs between
the quantiles of the B values (Efron 1979), as in `lorakit.evaluation.bootstrap`. Macro F1 is computed
again for each draw. Of BLEU and chrF, which are no mean of rows, the spread is that of their rows'
values, around the value of the whole set.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lorakit.evaluation.bootstrap import Interval
from lorakit.evaluation.scores import MetricScore, Scores

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
        drawn_B = _drawn(metric, predictions, references)
        if drawn_B is not None:
            found[metric.name] = _interval(metric.value, drawn_B, metric.n)
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
        ours = _drawn(metric, after[1], references)
        theirs = _drawn(other, before[1], references)
        if ours is not None and theirs is not None:
            found[metric.name] = _interval(metric.value - other.value, ours - theirs, metric.n)
    return found


def _interval(value: float, drawn_B: Floats, n: int) -> Interval:
    low, high = np.quantile(drawn_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high), LEVEL, n, len(drawn_B))


def _drawn(
    metric: MetricScore, predictions: Sequence[str], references: Sequence[str]
) -> Floats | None:
    """The metric of each draw, (B,); of the same rows always the same draws."""
    if metric.rows is not None:
        rows_N = np.array(metric.rows)
        apart = metric.value - float(rows_N.mean())
        means = [counts_bN @ rows_N / len(rows_N) for counts_bN in _counts(len(rows_N))]
        return np.asarray(np.concatenate(means) + apart)
    if metric.name == "macro_f1":
        return _macro_f1(predictions, references)
    return None


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
