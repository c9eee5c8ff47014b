"""Answers that equal their references are the best possible in every measure that is shown."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit.evaluation import METRICS, score
from lorakit.evaluation.calls import as_text
from lorakit.evaluation.metrics import choose, score_by

WORDS = [
    "red",
    "Blue",
    "the",
    "a",
    "?",
    "C++",
    "naïve",
    "été",
    "猫",
    "👍",
    "42",
    "-7.5",
    "#### 3",
    "\n",
]
sentences = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
labels = st.lists(st.sampled_from(["card lost", "refund", "A", "B", "0", "C", "C++", " top up "]))
numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)).map(str)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
objects = st.dictionaries(st.text(max_size=3), values, max_size=3)
calls = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from(["find", "book"]), "arguments": objects}),
    max_size=3,
)


def written(content: str, made: list[dict[str, Any]]) -> str:
    return as_text(content, made)


kinds = st.one_of(
    st.lists(sentences, min_size=1, max_size=8),
    labels.filter(bool),
    st.lists(st.text(), min_size=1, max_size=8),
    st.lists(st.text(max_size=1), min_size=1, max_size=8),
    st.lists(numbers, min_size=1, max_size=8),
    st.lists(sentences.map("because\n#### {0}5".format), min_size=1, max_size=4),
    st.lists(
        st.one_of(objects, st.lists(values, max_size=3)).map(json.dumps), min_size=1, max_size=5
    ),
    st.lists(st.builds(written, sentences, calls), min_size=1, max_size=5),
)


@given(kinds)
def test_perfect_answers_have_the_best_value_of_every_measure(references: list[str]) -> None:
    scores = score(references, references)
    assert len(scores) >= 1
    assert {each.name: each.value for each in scores} == dict.fromkeys(scores.values, 1.0)


@given(kinds, st.data())
def test_no_answers_have_more_than_the_references(
    references: list[str], data: st.DataObject
) -> None:
    answers = data.draw(st.lists(sentences, min_size=len(references), max_size=len(references)))
    for each in score(answers, references):
        assert 0.0 <= each.value <= 1.0, each.name


@given(kinds, st.data())
def test_measures_of_all_rows_are_fair_to_any_of_them(
    references: list[str], data: st.DataObject
) -> None:
    """Eight samples are scored by what fits all held-out rows; perfect ones are perfect there too."""
    chosen = choose([(row,) for row in references])
    some = data.draw(st.lists(st.sampled_from(references), min_size=1, max_size=3))
    assert set(score_by(some, some, chosen).values.values()) == {1.0}


@given(st.lists(st.lists(sentences, min_size=1, max_size=3), min_size=1, max_size=5), st.data())
def test_any_of_several_references_is_perfect(rows: list[list[str]], data: st.DataObject) -> None:
    answers = [data.draw(st.sampled_from(row)) for row in rows]
    scores = score(answers, rows)
    for name in ("exact_match", "field_accuracy", "json_match", "call_match"):
        if name in scores.values:
            assert scores[name].value == 1.0
    first = score([row[0] for row in rows], rows)
    assert set(first.values.values()) == {1.0}


def test_bleu_of_one_word_answers_is_not_shown() -> None:
    references = ["Oslo", "Rome", "Bern", "Paris", "Kyiv", "Riga", "Oslo again", "Lima"]
    assert "bleu" not in score(references, references).values
    assert next(iter(score(references, references))).name == "exact_match"


def test_one_class_has_no_f1_of_classes() -> None:
    chosen = choose([("yes",), ("no",)] * 4)
    assert "macro_f1" in chosen.names
    assert list(score_by(["yes"], ["yes"], chosen).values) == ["accuracy", "exact_match", "f1"]


CALL = {"name": "find", "arguments": {"town": "Oslo", "days": 3}}
OTHER = {"name": "find", "arguments": {"town": "Rome", "days": 3}}


@pytest.mark.parametrize(
    ("answer", "match", "names"),
    [
        (as_text("", [CALL, OTHER]), 1.0, 1.0),
        (as_text("", [OTHER, CALL]), 1.0, 1.0),  # which comes first does not matter
        (
            json.dumps(
                {
                    "tool_calls": [
                        {"arguments": {"days": 3.0, "town": "Oslo"}, "name": "find"},
                        OTHER,
                    ]
                }
            ),
            1.0,
            1.0,
        ),  # 3.0 is 3 in JSON
        (as_text("", [CALL]), 0.0, 0.0),
        (as_text("", [CALL, CALL]), 0.0, 1.0),
        (as_text("", [CALL, OTHER, OTHER]), 0.0, 0.0),
        ("I would rather talk", 0.0, 0.0),
    ],
)
def test_calls_are_compared_as_values(answer: str, match: float, names: float) -> None:
    scores = score([answer], [as_text("", [CALL, OTHER])])
    assert next(iter(scores)).name == "call_match"
    assert (scores["call_match"].value, scores["call_names"].value) == (match, names)


def test_true_is_not_one_and_a_call_too_many_is_wrong() -> None:
    wanted = as_text("", [{"name": "f", "arguments": {"x": True}}])
    assert (
        score([as_text("", [{"name": "f", "arguments": {"x": 1}}])], [wanted])["call_match"].value
        == 0
    )
    talk = [wanted, "hello"]
    assert score([wanted, wanted], talk)["call_match"].value == 0.5


def test_all_metrics_may_be_named_and_are_shares() -> None:
    references = ['{"a": "#### 4"}'] * 2
    assert {each.value for each in score(references, references, METRICS)} == {1.0}
