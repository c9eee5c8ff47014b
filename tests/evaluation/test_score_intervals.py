"""Intervals of scores hold the truth as often as they say, of few rows too."""

import numpy as np
import pytest

from lorakit.evaluation import score
from lorakit.evaluation.intervals import changes, intervals


def scored(right, n=8):
    """Answers of which so many are right, and their references."""
    references = [f"word {i}" for i in range(n)]
    answers = [text if i < right else "no" for i, text in enumerate(references)]
    return score(answers, references, ["exact_match"]), answers, references


def test_eight_right_answers_of_eight_are_not_certain():
    spread = intervals(*scored(8))["exact_match"]
    assert spread.high == 1.0
    # Clopper and Pearson's lower end for 8 of 8 is .631; a zero-width interval would say certain.
    assert 0.4 < spread.low < 0.9


def test_none_to_all_is_a_change_and_one_answer_is_none():
    before, texts, references = scored(0)
    after, other, _ = scored(8)
    assert changes((before, texts), (after, other), references)["exact_match"].low > 0
    one, single, _ = scored(1)
    assert changes((before, texts), (one, single), references)["exact_match"].covers(0.0)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
def test_the_share_of_right_answers_is_inside_as_often_as_is_said(share):
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        right = int((draw.random(12) < share).sum())
        held += intervals(*scored(right, 12))["exact_match"].covers(share)
    assert held / 300 >= 0.93  # 95 %, less two standard errors of 300 tries


def labelled(right, n):
    """Labels of which so many are right, in turn of two classes, and their references."""
    references = ["spam" if i % 2 else "mail" for i in range(n)]
    answers = [text if i < right else "no" for i, text in enumerate(references)]
    return score(answers, references, ["macro_f1"]), answers, references


@pytest.mark.parametrize("right", [0, 12])
def test_macro_f1_of_rows_that_are_all_alike_is_not_certain(right):
    """A draw of such rows is always the same; Clopper and Pearson's interval of 12 of 12 begins at .735."""
    spread = intervals(*labelled(right, 12))["macro_f1"]
    assert spread.covers(right / 12)
    assert 0.1 < spread.high - spread.low < 0.35


def test_four_labels_are_no_clear_change_of_macro_f1():
    before, texts, references = labelled(0, 4)
    after, other, _ = labelled(4, 4)
    assert changes((before, texts), (after, other), references)["macro_f1"].covers(0.0)
    before, texts, references = labelled(0, 12)
    after, other, _ = labelled(12, 12)
    assert changes((before, texts), (after, other), references)["macro_f1"].low > 0


@pytest.mark.parametrize("share", [0.7, 0.95])
def test_the_true_macro_f1_is_inside_as_often_as_is_said(share):
    """Both classes are as frequent and as often right, wrong ones answered as the other: then the
    macro F1 of endless rows is the share of right ones."""
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        references = ["spam" if i % 2 else "mail" for i in range(20)]
        right = draw.random(20) < share
        answers = [
            text if r else ("mail" if text == "spam" else "spam")
            for text, r in zip(references, right, strict=True)
        ]
        scored = score(answers, references, ["macro_f1"])
        held += intervals(scored, answers, references)["macro_f1"].covers(share)
    assert held / 200 >= 0.92  # 95 %, less two standard errors of 200 tries
