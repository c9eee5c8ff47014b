import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from lorakit.errors import ConfigError, DataError
from lorakit.evaluation import METRICS, score

LABELS = ["card lost", "refund", "card lost", "refund", "card lost", "top up"]


def test_auto_takes_json_metrics_for_objects() -> None:
    scores = score(['{"a": 1, "b": 3}', "oh"], ['{"a": 1, "b": 2}', '{"a": 1}'])
    assert next(iter(scores)).name == "field_accuracy"
    # Row 0: a right, b wrong. Words: a1 b3 become "1 b 3" (a is an article), so 2 of 3 shared.
    assert scores.values == pytest.approx(
        {
            "field_accuracy": 0.25,
            "json_match": 0.0,
            "json_validity": 0.5,
            "exact_match": 0.0,
            "f1": (2 / 3) / 2,
        }
    )
    assert "JSON" in scores.why


def test_auto_takes_label_metrics_for_few_short_labels() -> None:
    scores = score(["card lost", "refund", "refund", "refund", "stolen", "top up "], LABELS)
    assert list(scores.values) == ["accuracy", "macro_f1", "exact_match", "f1"]
    assert scores["accuracy"].value == pytest.approx(4 / 6)
    # By hand: card lost P=1/1 R=1/3 F=1/2; refund P=2/3 R=1 F=4/5; top up F=1.
    assert scores["macro_f1"].value == pytest.approx((0.5 + 0.8 + 1.0) / 3)
    assert scores["macro_f1"].rows is None
    assert "3 short labels" in scores.why


def test_auto_takes_the_number_for_worked_solutions() -> None:
    scores = score(["so 4", "#### 5"], ["2+2=4\n#### 4", "#### 6"])
    assert list(scores.values) == ["numeric_answer", "exact_match", "f1"]
    assert scores["numeric_answer"].rows == (1.0, 0.0)


@pytest.mark.parametrize(
    ("references", "wanted"),
    [
        (["all", "differ", "here"], ["exact_match", "f1", "chrf"]),
        (["one label alone", "one label alone"], ["exact_match", "f1", "chrf"]),
        (["x" * 65, "x" * 65, "y", "y"], ["exact_match", "f1", "chrf"]),
        (["two\nlines", "two\nlines", "y", "y"], ["exact_match", "f1", "chrf"]),
        (["", "", "y", "y"], ["exact_match", "chrf"]),
        (['{"a": 1}', "free"], ["exact_match", "f1", "chrf"]),
        ([["a place by the river", "by the river"]] * 4, ["f1", "chrf", "bleu", "exact_match"]),
        (["its words are four", "and these are many more"], ["f1", "chrf", "bleu", "exact_match"]),
        (["12", "-3.5", "1,200"], ["numeric_answer", "exact_match"]),
        (["007", "7", "1,5"], ["exact_match", "f1", "chrf"]),
        (["这是一个很长的句子没有空格", "另一个同样很长的中文句子在这里"], ["chrf", "exact_match"]),
        (['["a", "b"]', "[]"], ["field_accuracy", "json_match", "json_validity", "exact_match"]),
        (["A", "B", "A", "B"], ["accuracy", "macro_f1", "exact_match"]),  # "a" is no word to f1
        (["C", "C++", "C", "C++"], ["accuracy", "macro_f1", "exact_match"]),  # one word to f1
    ],
)
def test_auto_takes_what_has_a_meaning(references: list[str], wanted: list[str]) -> None:
    scores = score(["x"] * len(references), references)
    assert list(scores.values) == wanted
    assert {each.range for each in scores} == {(0.0, 1.0)}


def test_named_metrics_keep_their_order_once() -> None:
    assert list(score(["a"], ["a"], ["f1", "exact_match", "f1"]).values) == ["f1", "exact_match"]
    assert list(score(["a"], ["a"], "json_validity").values) == ["json_validity"]


def test_to_dict_is_plain_json() -> None:
    scores = score(["a b", "c"], ["a b", "d"])
    data = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    by_name = {m["name"]: m for m in data["metrics"]}
    assert by_name["exact_match"] == {
        "name": "exact_match",
        "value": 0.5,
        "n": 2,
        "unit": "share",
        "range": [0.0, 1.0],
        "rows": [1.0, 0.0],
        "mean_of_rows": True,
    }
    assert by_name["chrf"]["mean_of_rows"] is False


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no metric 'blue'; did you mean 'bleu'"):
        score(["a"], ["a"], ["blue"])
    with pytest.raises(ConfigError, match="no metric is named"):
        score(["a"], ["a"], [])
    with pytest.raises(KeyError, match="'chfr' was not scored; did you mean 'chrf'"):
        score(["a"], ["a"])["chfr"]


@pytest.mark.parametrize(
    ("predictions", "references", "metrics", "message"),
    [
        ([], [], "auto", "no predictions to score"),
        (["a"], ["a", "b"], "auto", "1 predictions but 2 rows of references"),
        (["a"], [[]], "auto", "row 0 has no reference"),
        (["a", 3], ["a", "b"], "auto", "row 1 holds a int"),
        (["a"], [["a", None]], "auto", "row 0 holds a NoneType"),
        (
            ["a"],
            ["plain"],
            "field_accuracy",
            "needs references that are JSON objects or arrays; row 0",
        ),
        (["a"], [["x", "y"]], "accuracy", "needs exactly one reference a row; row 0.*1 more"),
        (["a"], ["none"], "numeric_answer", "needs references that are a number, or end in '####'"),
        (["a"], ["one word"], "bleu", "bleu has no meaning for these references"),
    ],
)
def test_bad_input(predictions: list, references: list, metrics: str, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(DataError, match=message):
        score(predictions, references, metrics)


@given(st.lists(st.tuples(st.sampled_from("abcx"), st.sampled_from("abc")), min_size=1))
def test_labels_agree_with_sklearn_and_counting(pairs: list[tuple[str, str]]) -> None:
    predicted, wanted = [p for p, _ in pairs], [w for _, w in pairs]
    scores = score(predicted, wanted, ["accuracy", "macro_f1"])
    assert scores["accuracy"].value == pytest.approx(sum(p == w for p, w in pairs) / len(pairs))
    known = sorted(set(wanted))
    each = f1_score(wanted, predicted, labels=known, average=None, zero_division=0)
    assert scores["macro_f1"].value == pytest.approx(sum(each) / len(known))


words = st.lists(st.sampled_from(["red", "blue", "####", "4", "{}", '{"a":1}', " "]), max_size=4)


@given(st.lists(st.tuples(words.map(" ".join), words.map(" ".join)), min_size=1, max_size=5))
def test_every_value_is_in_range_and_the_mean_of_its_rows(pairs: list[tuple[str, str]]) -> None:
    for metric in score([p for p, _ in pairs], [r for _, r in pairs]):
        low, high = metric.range
        assert low <= metric.value <= high + 1e-9
        assert metric.n == len(pairs)
        if metric.rows is not None:
            assert len(metric.rows) == len(pairs)
            if metric.mean_of_rows:
                assert metric.value == pytest.approx(sum(metric.rows) / len(pairs))


@given(st.lists(words.map(" ".join).filter(str.strip), min_size=1, max_size=5))
def test_right_answers_get_full_marks(texts: list[str]) -> None:
    for metric in score(texts, texts):
        assert metric.value == metric.range[1], metric.name


def test_start_up_is_light() -> None:
    code = (
        "import sys, lorakit.evaluation as e; e.score(['{}'], ['{}'])\n"
        "print([m for m in ('sacrebleu', 'sklearn', 'torch') if m in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "[]"


def test_all_names_can_be_asked_for() -> None:
    references = ['{"a": "#### 4"}'] * 2
    assert list(score(references, references, METRICS).values) == list(METRICS)
