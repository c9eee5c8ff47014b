"""Numbers, verdicts and judged answers, against values worked by hand."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit.report import numbers
from lorakit.report.answers import sample
from lorakit.report.wording import (
    first_score,
    score_change,
    score_value,
    score_verdict,
    second_verdict,
    verdict,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("show", "value", "wanted"),
    [
        ("number", 0.0, "0"),
        ("number", -1234.5, "−1,234"),
        ("number", 1234567, "1,234,567"),
        ("number", 0.00020, "2e-4"),
        ("number", 3.2e-5, "3.2e-5"),
        ("number", 0.61, "0.61"),
        ("number", True, "–"),
        ("loss", 2.31149, "2.311"),
        ("loss", 0.00123, "0.0012"),
        ("count", 2442240.0, "2,442,240"),
        ("percent", 0.0182, "1.8 %"),
        ("percent", 0.0000123, "0.0012 %"),
        ("percent", 1, "100.0 %"),
        ("percent", 0, "0.0 %"),
        ("signed", -0.04, "0.0"),
        ("signed", -3.25, "−3.2"),
        ("size", 1023, "1.0 kB"),
        ("size", 16 * 2**30, "17.2 GB"),
        ("size", 300 * 2**20, "314.6 MB"),
        ("duration", 0, "0 s"),
        ("duration", 9.87, "9.9 s"),
        ("duration", 119.4, "119 s"),
        ("duration", 3599.6, "1 h 0 min"),
        ("duration", 90061, "25 h 1 min"),
    ],
)
def test_numbers(show: str, value: float, wanted: str) -> None:
    assert getattr(numbers, show)(value).replace("\u00a0", " ") == wanted


@given(
    st.sampled_from(["number", "loss", "count", "percent", "signed", "size", "duration"]),
    st.none() | st.text() | st.booleans() | st.sampled_from([NAN, math.inf, -math.inf]),
)
def test_what_is_no_number_is_a_dash(show: str, value: Any) -> None:
    assert getattr(numbers, show)(value) == "–"


@given(st.floats(-1e14, 1e14))
def test_a_number_reads_back(value: float) -> None:
    text = numbers.number(value).replace(",", "").replace("−", "-")
    assert float(text) == pytest.approx(value, rel=6e-3)


@pytest.mark.parametrize(
    ("result", "wanted"),
    [
        ({"eval_loss_before": 1.0, "eval_loss": 1.5},
         "Held-out loss rose from 1.000 to 1.500 nats per token."),
        ({"eval_loss_before": 2.0, "eval_loss": 1.999, "seconds": 12},
         "Held-out loss stayed at 1.999 nats per token in 12 s."),
        ({"eval_loss_before": NAN, "eval_loss": 1.5, "trainable_parameters": 10},
         "Held-out loss is 1.500 nats per token after training; 10 parameters trained."),
        ({"train_loss": 0.5}, "Training loss ended at 0.500 nats per token; no rows were held out."),
        ({}, "No final loss was recorded: the run did not finish."),
    ],
)  # fmt: skip
def test_verdict(result: dict[str, Any], wanted: str) -> None:
    assert verdict(result).replace("\u00a0", " ") == wanted


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ({"bleu": 10.0}, {"bleu": 4.0}, "BLEU fell from 10 to 4."),
        ({"f1": 0.5}, {"f1": 0.5}, "Token F1 stayed at 0.500."),
        ({}, {"f1": NAN, "accuracy": 0.5}, "Accuracy: 0.500."),
        (None, None, ""),
    ],
)
def test_second_verdict(before: Any, after: Any, wanted: str) -> None:
    said = second_verdict({"scores_before": before, "scores_after": after})
    assert said.replace("\u00a0", " ") == wanted


def test_scores_have_one_scale() -> None:
    assert score_value("chrf", 0.5) == score_value("accuracy", 0.5) == "0.500"
    assert score_value("my_metric", 12.5) == "12.5"
    assert score_change("my_metric", 0.5, 12.5) == "+12.0"
    assert score_change("f1", 0.5, 0.75) == "+0.250"


def changed(low: float, high: float, n: int) -> dict[str, Any]:
    spread = {"mean": (low + high) / 2, "low": low, "high": high, "level": 0.95, "n": n}
    return {
        "scores_before": {"f1": 0.5, "accuracy": 0.5},
        "scores_after": {"f1": 0.9, "accuracy": 0.25},
        "headline": "accuracy",
        "scores_change": {"accuracy": {**spread, "resamples": 10}},
    }


@pytest.mark.parametrize(
    ("spread", "word", "said"),
    [
        ((-0.4, -0.1, 40), "worse", "Accuracy fell from 0.500 to 0.250."),
        ((-0.4, 0.1, 40), "no clear change",
         "Accuracy went from 0.500 to 0.250: no clear change over 40 answers."),
        ((-0.4, -0.1, 4), "no clear change",
         "Accuracy went from 0.500 to 0.250: no clear change over 4 answers."),
    ],
)  # fmt: skip
def test_a_word_stands_for_what_is_beyond_the_interval(spread: Any, word: str, said: str) -> None:
    result = changed(*spread)
    assert score_verdict(result, "accuracy") == word
    assert second_verdict(result) == said
    assert score_verdict(result, "f1") == "", "of older runs nothing is known"
    assert first_score(result) == "accuracy"


def judged(reference: Any, answer: str, score: Any = None) -> tuple[str, str]:
    made = sample({"reference": reference, "after": answer, "after_score": score})
    return made.answers[-1].state, made.answers[-1].judgement.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("reference", "answer", "score", "wanted"),
    [
        ('{"a": 1}', '{"a":1.0}', None, ("right", "right")),
        ('{"a": [1]}', '{"a": [true]}', None, ("wrong", "wrong")),
        ('{"a": [1], "b": {}}', '{"b": {}, "a": [1]}', None, ("right", "right")),
        ('{"a": 1}', '{"a": ' + "[" * 5000, None, ("wrong", "not JSON")),
        ('{"a": 1}', '{"a": 2}', None, ("wrong", "wrong")),
        ('{"a": 1, "b": 2}', '{"a": 1, "c": 2}', None, ("partly", "1 of 3 fields right")),
        ('{"a": 1}', "{a", None, ("wrong", "not JSON")),
        ('{"a": 1}', '{"a": 2}', 0.0, ("wrong", "wrong")),
        ('{"a": 1}', '{"a": 2}', 0.25, ("partly", "25 % right")),
        ("x", "y", 1.0, ("right", "right")),
        ("x", "y", NAN, ("differs", "differs")),
        (["x", "z"], "x", None, ("right", "right")),
        (None, "y", None, ("differs", "")),
    ],
)
def test_judgement(reference: Any, answer: str, score: Any, wanted: tuple[str, str]) -> None:
    assert judged(reference, answer, score) == wanted


def test_json_fields_are_marked_each() -> None:
    made = sample(
        {"reference": '{"a": 1, "b": {"x": 1}, "c": 0}', "after": '{"b": {"x": 2}, "a": 1, "d": 5}'}
    )
    marks = {line.text.strip(" ,"): line.mark for line in made.answers[1].lines}
    assert marks == {
        "{": "", '"b": {"x": 2}': "wrong", '"a": 1': "", '"d": 5': "extra", '"c"': "missing", "}": ""
    }  # fmt: skip
    assert all(line.mark == "" for line in made.answers[0].lines)


def test_long_answers_are_cut_for_display() -> None:
    made = sample({"after": "x" * 5000})
    assert made.answers[0].lines[0].text.endswith("[…3,500 more characters]")


@given(
    st.dictionaries(
        st.sampled_from(["prompt", "reference", "before", "after", "before_score", "after_score"]),
        st.none() | st.text() | st.floats() | st.lists(st.text(), max_size=2),
    )
)
def test_any_record_can_be_shown(record: dict[str, Any]) -> None:
    sample(record)
