"""`score`: predictions and references in, named scores out, with the choice explained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from lorakit.errors import ConfigError, DataError, did_you_mean
from lorakit.evaluation import calls, labels, structured, text
from lorakit.evaluation.kinds import ChosenMetrics, References, choose, kind_of_row
from lorakit.evaluation.scores import MetricScore, Scores
from lorakit.extras import install, missing, need

__all__ = [
    "METRICS",
    "MetricScore",
    "Scores",
    "again",
    "check_names",
    "choose",
    "score",
    "score_by",
]

# How far a sum of shares may be from 1 by rounding.
_ROUNDING = 1e-9


RowMetric = Callable[[str, Sequence[str]], float]
SetMetric = Callable[[Sequence[str], References], tuple[float, list[float] | None]]


@dataclass(frozen=True)
class _Metric:
    """How a metric is computed, row by row or over the set, and what it needs.

    `scale`: its best value as its own definition has it. `package`: the optional module that
    computes it.
    """

    of_row: RowMetric | None = None
    of_set: SetMetric | None = None
    scale: float = 1.0
    needs: Literal["text", "json", "label", "number"] = "text"
    mean_of_rows: bool = True
    package: str | None = None


def _single(function: Callable[..., tuple[float, list[float] | None]]) -> SetMetric:
    return lambda predictions, references: function(predictions, [row[0] for row in references])


_METRICS: dict[str, _Metric] = {
    "exact_match": _Metric(text.exact_match),
    "f1": _Metric(text.token_f1),
    "bleu": _Metric(of_set=text.bleu, scale=100.0, mean_of_rows=False, package="sacrebleu"),
    "chrf": _Metric(of_set=text.chrf, scale=100.0, mean_of_rows=False, package="sacrebleu"),
    "accuracy": _Metric(of_set=_single(labels.accuracy), needs="label"),
    "macro_f1": _Metric(
        of_set=_single(labels.macro_f1), needs="label", mean_of_rows=False, package="sklearn"
    ),
    "field_accuracy": _Metric(structured.field_accuracy, needs="json"),
    "json_match": _Metric(structured.json_match, needs="json"),
    "json_validity": _Metric(structured.json_validity),
    "numeric_answer": _Metric(text.numeric_answer, needs="number"),
    "call_match": _Metric(calls.call_match),
    "call_names": _Metric(calls.call_names),
}

METRICS: tuple[str, ...] = tuple(_METRICS)
"""The names that `score` knows."""


def score(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    metrics: str | Sequence[str] = "auto",
) -> Scores:
    """Score predictions against references: one text, or several acceptable ones, a row.

    `metrics` is "auto", a name, or names out of `METRICS`. "auto" looks at the references
    alone, never at the predictions, so that two models are always judged by the same metrics; see
    `lorakit.evaluation.kinds.choose`. It leaves out what has no meaning for these rows: a metric by
    which the references themselves would not be the best possible answers.

    Where an optional package is not installed, "auto" leaves its metrics out, and says so in `left_out`.

    Raises ConfigError for a name it does not know; MissingExtraError for one whose package is not
    installed; DataError for no rows, unequal lengths, or references that a metric named by the
    caller cannot use.
    """
    rows = _check(predictions, references)
    if metrics == "auto":
        return score_by(predictions, references, choose(rows))
    names = check_names(metrics)
    for name in names:
        _need(name, _METRICS[name].needs, rows)
        if not _means_something(name, rows):
            raise DataError(
                f"{name} has no meaning for these references: they themselves, as answers, would not "
                "get its best value, because they are too short. Leave it out"
            )
    return Scores(tuple(_compute(name, predictions, rows) for name in names), "named by the caller")


def score_by(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], chosen: ChosenMetrics
) -> Scores:
    """Score by metrics that were chosen on more references than these.

    Args:
        predictions: a text a row.
        references: one text, or several acceptable ones, a row.
        chosen: from `choose`, on all references there are. What has no meaning for these rows is
            left out.

    Raises:
        DataError: as `score`.
    """
    rows = _check(predictions, references)
    names, left_out = _computable(chosen.names)
    alone = len({row[0].strip() for row in rows}) < 2  # F1 of one class is accuracy by another name
    meant = [
        name
        for name in names
        if _fits(name, rows) and _means_something(name, rows) and not (alone and name == "macro_f1")
    ]
    scores = tuple(_compute(name, predictions, rows) for name in meant or ["exact_match"])
    return Scores(scores, chosen.why, left_out)


def again(name: str, predictions: Sequence[str], references: Sequence[str]) -> float:
    """One metric's value on rows that were scored before, as a resampling draws them."""
    return _compute(name, predictions, [(row,) for row in references]).value


def check_names(metrics: str | Sequence[str]) -> tuple[str, ...]:
    """The metrics that a caller names, each once; a run asks this before it begins.

    Raises:
        ConfigError: a name is not known, or none is given.
        MissingExtraError: the package of one is not installed.
    """
    names = (metrics,) if isinstance(metrics, str) else tuple(dict.fromkeys(metrics))
    if not names:
        raise ConfigError(f"no metric is named; {did_you_mean('', METRICS)}, or 'auto'")
    for name in names:
        if name not in _METRICS:
            raise ConfigError(f"no metric {name!r}; {did_you_mean(name, [*METRICS, 'auto'])}")
        package = _METRICS[name].package
        if package is not None:
            need("metrics", f"the metric {name}", package)
    return names


def _computable(names: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Those of `names` whose packages are installed, and a sentence about the others."""
    packages = {name: _METRICS[name].package for name in names}
    out = [name for name, package in packages.items() if package and missing(package)]
    if not out:
        return names, ""
    return (
        tuple(name for name in names if name not in out),
        f"not scored: {' and '.join(out)}, because {packages[out[0]]} is not installed: "
        f"{install('metrics')}",
    )


_NEEDS: dict[str, tuple[Callable[[Sequence[str]], bool], str]] = {
    "text": (lambda row: True, ""),
    "json": (lambda row: kind_of_row(row) == "json", "references that are JSON objects or arrays"),
    "label": (lambda row: len(row) == 1, "exactly one reference a row"),
    "number": (
        lambda row: all(text.final_number(reference) is not None for reference in row),
        f"references that are a number, or end in '{text.ANSWER_MARK}' and a number",
    ),
}


def _fits(name: str, references: References) -> bool:
    return all(map(_NEEDS[_METRICS[name].needs][0], references))


def _means_something(name: str, references: References) -> bool:
    """Whether the references, as answers, have the best possible value; else none could have it."""
    if _METRICS[name].package is None:
        return True
    perfect = _compute(name, [row[0] for row in references], references)
    return perfect.value >= 1.0 - _ROUNDING


def _need(name: str, need: str, references: References) -> None:
    fits, wanted = _NEEDS[need]
    for index, row in enumerate(references):
        if not fits(row):
            raise DataError(f"{name} needs {wanted}; row {index} has {_shown(row)}")


def _shown(row: Sequence[str]) -> str:
    first = row[0] if len(row[0]) <= 60 else row[0][:57] + "..."
    return repr(first) + (f" and {len(row) - 1} more" if len(row) > 1 else "")


def _check(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> References:
    if len(predictions) != len(references):
        raise DataError(
            f"{len(predictions)} predictions but {len(references)} rows of references; "
            "give one row of references for each prediction"
        )
    if not predictions:
        raise DataError("there are no predictions to score; give at least one row")
    rows = [(row,) if isinstance(row, str) else tuple(row) for row in references]
    for index, (prediction, row) in enumerate(zip(predictions, rows, strict=True)):
        if not row:
            raise DataError(f"row {index} has no reference; give a text or a list of texts")
        for value in (prediction, *row):
            if not isinstance(value, str):
                kind = type(value).__name__
                raise DataError(f"row {index} holds a {kind} where a text is expected: {value!r}")
    return rows


def _compute(name: str, predictions: Sequence[str], references: References) -> MetricScore:
    metric = _METRICS[name]
    if metric.of_row is not None:
        of_row = metric.of_row
        rows: list[float] | None = [
            of_row(p, r) for p, r in zip(predictions, references, strict=True)
        ]
        value = fmean(rows or ())
    else:
        assert metric.of_set is not None
        value, rows = metric.of_set(predictions, references)
    return MetricScore(
        name=name,
        # sacrebleu's best value is 100.00000000000004.
        value=min(1.0, value / metric.scale),
        n=len(predictions),
        rows=None if rows is None else tuple(min(1.0, row / metric.scale) for row in rows),
        mean_of_rows=metric.mean_of_rows,
    )
