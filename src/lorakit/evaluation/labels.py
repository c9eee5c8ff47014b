"""Scores of answers that are one of a few labels: accuracy, and macro F1 through scikit-learn.

The labels are the references, white space at both ends aside. A prediction that is none of
them is wrong; it makes no class of its own.
"""

from collections.abc import Sequence
from statistics import fmean


def accuracy(predictions: Sequence[str], references: Sequence[str]) -> tuple[float, list[float]]:
    """Share of rows with the right label, in 0..1, and 1.0 or 0.0 for each row."""
    rows = [float(p.strip() == r.strip()) for p, r in zip(predictions, references, strict=True)]
    return fmean(rows), rows


def macro_f1(predictions: Sequence[str], references: Sequence[str]) -> tuple[float, None]:
    """Mean over the references' labels of F1 = 2·TP/(2·TP + FP + FN), in 0..1.

    Every label weighs the same, however rare; a label that is never predicted scores 0. It
    is a value of the whole set: rows have none.
    """
    from sklearn.metrics import f1_score

    predicted = [p.strip() for p in predictions]
    wanted = [r.strip() for r in references]
    value = f1_score(
        wanted, predicted, labels=sorted(set(wanted)), average="macro", zero_division=0.0
    )
    return float(value), None
