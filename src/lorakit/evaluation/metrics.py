"""`score`: predictions and references in, named scores out, with the choice explained."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from lorakit.errors import ConfigError, DataError, did_you_mean
from lorakit.evaluation import labels, structured, text
from lorakit.extras import install, missing, need

References = Sequence[Sequence[str]]
Unit = Literal["share", "points"]

# A label is short, and a set of labels is one whose members return: on average twice or more.
_LABEL_CHARACTERS = 64
_LABEL_REPEATS = 2


@dataclass(frozen=True)
class MetricScore:
    """One metric over n rows.

    `value` lies in `range`; its `unit` is "share" (0 to 1) or "points" (0 to 100, as BLEU and
    chrF are published). `rows` has one value a row in the same unit, for paired intervals, or
    is None where rows have none; `mean_of_rows` says that `value` is exactly their mean.
    Higher is better, always.
    """

    name: str
    value: float
    n: int
    unit: Unit
    rows: tuple[float, ...] | None
    mean_of_rows: bool

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value that are possible."""
        return (0.0, 1.0) if self.unit == "share" else (0.0, 100.0)

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
    """

    metrics: tuple[MetricScore, ...]
    why: str
    left_out: str = ""

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
    def values(self) -> dict[str, float]:
        """Name -> value, in order, as in `result.json`."""
        return {metric.name: metric.value for metric in self.metrics}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, row values included."""
        return {"why": self.why, "metrics": [metric.to_dict() for metric in self.metrics]}


RowMetric = Callable[[str, Sequence[str]], float]
SetMetric = Callable[[Sequence[str], References], tuple[float, list[float] | None]]


@dataclass(frozen=True)
class _Metric:
    """How a metric is computed, row by row or over the set, and what it needs.

    `package`: the optional module that computes it.
    """

    of_row: RowMetric | None = None
    of_set: SetMetric | None = None
    unit: Unit = "share"
    needs: Literal["text", "json", "label", "number"] = "text"
    mean_of_rows: bool = True
    package: str | None = None


def _single(function: Callable[..., tuple[float, list[float] | None]]) -> SetMetric:
    return lambda predictions, references: function(predictions, [row[0] for row in references])


_METRICS: dict[str, _Metric] = {
    "exact_match": _Metric(text.exact_match),
    "f1": _Metric(text.token_f1),
    "bleu": _Metric(of_set=text.bleu, unit="points", mean_of_rows=False, package="sacrebleu"),
    "chrf": _Metric(of_set=text.chrf, unit="points", mean_of_rows=False, package="sacrebleu"),
    "accuracy": _Metric(of_set=_single(labels.accuracy), needs="label"),
    "macro_f1": _Metric(
        of_set=_single(labels.macro_f1), needs="label", mean_of_rows=False, package="sklearn"
    ),
    "field_accuracy": _Metric(structured.field_accuracy, needs="json"),
    "json_match": _Metric(structured.json_match, needs="json"),
    "json_validity": _Metric(structured.json_validity),
    "numeric_answer": _Metric(text.numeric_answer, needs="number"),
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
    alone, never at the predictions, so that two models are always judged by the same metrics:

    - all JSON objects: field_accuracy, json_match, json_validity, exact_match, f1
    - all end in `#### number`: numeric_answer, exact_match, f1
    - one short line a row, each distinct one twice or more on average: accuracy, macro_f1,
      exact_match, f1
    - any other text: f1, chrf, bleu, exact_match

    Where an optional package is not installed, "auto" leaves its metrics out, and says so in `left_out`.

    Raises ConfigError for a name it does not know; MissingExtraError for one whose package is not
    installed; DataError for no rows, unequal lengths, or references that a metric named by the
    caller cannot use.
    """
    rows = _check(predictions, references)
    if metrics == "auto":
        fitting, why = choose(rows)
        names, left_out = _computable(fitting)
    else:
        names, why, left_out = check_names(metrics), "named by the caller", ""
        for name in names:
            _need(name, _METRICS[name].needs, rows)
    return Scores(tuple(_compute(name, predictions, rows) for name in names), why, left_out)


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


def choose(references: References) -> tuple[tuple[str, ...], str]:
    """The metrics that fit the references, and a clause that says why."""
    if all(_is_json(row) for row in references):
        return (
            ("field_accuracy", "json_match", "json_validity", "exact_match", "f1"),
            "every reference is a JSON object",
        )
    if all(_is_number(row) for row in references):
        return (
            ("numeric_answer", "exact_match", "f1"),
            f"every reference ends in '{text.ANSWER_MARK}' and a number",
        )
    if all(_is_label(row) for row in references):
        distinct = len({row[0].strip() for row in references})
        if distinct >= 2 and distinct * _LABEL_REPEATS <= len(references):
            return (
                ("accuracy", "macro_f1", "exact_match", "f1"),
                f"the {len(references)} references are {distinct} short labels",
            )
    return ("f1", "chrf", "bleu", "exact_match"), "the references are free text"


def _is_json(row: Sequence[str]) -> bool:
    return all(structured.parse_object(reference) is not None for reference in row)


def _is_number(row: Sequence[str]) -> bool:
    return all(text.ANSWER_MARK in r and text.final_number(r) is not None for r in row)


def _is_label(row: Sequence[str]) -> bool:
    label = row[0].strip()
    return len(row) == 1 and 0 < len(label) <= _LABEL_CHARACTERS and "\n" not in label


_NEEDS: dict[str, tuple[Callable[[Sequence[str]], bool], str]] = {
    "text": (lambda row: True, ""),
    "json": (_is_json, "references that are JSON objects"),
    "label": (lambda row: len(row) == 1, "exactly one reference a row"),
    "number": (_is_number, f"references that end in '{text.ANSWER_MARK}' and a number"),
}


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
        value=value,
        n=len(predictions),
        unit=metric.unit,
        rows=None if rows is None else tuple(rows),
        mean_of_rows=metric.mean_of_rows,
    )
