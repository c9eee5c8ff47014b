"""Oracles: values worked by hand, and sacrebleu's own command line."""

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit.evaluation import text

REFERENCES = [
    ["There is a place in the city centre, Alimentum.", "Alimentum is in the city centre."],
    ["The Punter is a cheap pub by the river.", "By the river there is a cheap pub."],
    ["Aromi serves English food.", "English food is on the menu of Aromi."],
]
PREDICTIONS = [
    "There is a venue in the city centre, named Alimentum.",
    "The Punter is a pub by the river.",
    "Aromi serves Italian food.",
]


@pytest.mark.parametrize(
    ("prediction", "reference", "wanted"),
    [
        ("Paris", "paris!", 1.0),
        ("the cat", "a cat", 1.0),  # articles do not count
        ("a b c d", "b c", 0.8),  # "a" is an article: P = 2/3, R = 2/2
        ("red red blue", "red blue blue", 2 / 3),  # repeats: two of three shared
        ("red", "blue", 0.0),
        ("", "", 1.0),
        ("the", "", 1.0),
        ("", "blue", 0.0),
        ("mother-in-law", "motherinlaw", 1.0),  # punctuation goes, no space is left
    ],
)
def test_token_f1_by_hand(prediction: str, reference: str, wanted: float) -> None:
    assert text.token_f1(prediction, [reference]) == pytest.approx(wanted)


def test_best_reference_counts() -> None:
    assert text.token_f1("blue", ["red", "blue"]) == 1.0
    assert text.exact_match(" blue\n", ["red", "blue "]) == 1.0
    assert text.exact_match("Blue", ["blue"]) == 0.0


@given(st.text(), st.text())
def test_token_f1_is_symmetric_and_bounded(a: str, b: str) -> None:
    assert text.token_f1(a, [b]) == text.token_f1(b, [a])
    assert 0.0 <= text.token_f1(a, [b]) <= 1.0
    assert text.token_f1(a, [a]) == 1.0
    assert text.exact_match(a, [b, a]) == 1.0


@given(st.lists(st.sampled_from(["red", "blue", "green"]), min_size=1))
def test_token_f1_forgets_the_order(words: list[str]) -> None:
    assert text.token_f1(" ".join(words), [" ".join(reversed(words))]) == 1.0


@pytest.mark.parametrize(
    ("solution", "wanted"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### $18.00", "18"),
        ("#### -5", "-5"),
        ("#### 7 and then #### 8", "7"),
        ("first 3 apples, so 12", "12"),
        ("10-5", "5"),
        ("it is .5", "0.5"),
        ("minus: -2.", "-2"),
        ("3 apples ####", None),
        ("none", None),
        ("", None),
    ],
)
def test_final_number_by_hand(solution: str, wanted: str | None) -> None:
    found = text.final_number(solution)
    assert found == (None if wanted is None else Decimal(wanted))


def test_numeric_answer_ignores_the_way_to_it() -> None:
    assert text.numeric_answer("It is 18.", ["9 * 2 = 18\n#### 18"]) == 1.0
    assert text.numeric_answer("#### 19", ["#### 18"]) == 0.0
    assert text.numeric_answer("no idea", ["#### 18"]) == 0.0


@given(st.text(alphabet="0123456789.,-+#$ a"))
def test_final_number_never_fails(solution: str) -> None:
    text.final_number(solution)


@given(st.integers(-(10**12), 10**12))
def test_final_number_reads_what_python_prints(number: int) -> None:
    assert text.final_number(f"so\n#### {number:,}") == number


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_agrees_with_sacrebleu_on_the_command_line(metric: str, tmp_path: Path) -> None:
    files = []
    for name, lines in [
        ("first", [r[0] for r in REFERENCES]),
        ("second", [r[1] for r in REFERENCES]),
        ("out", PREDICTIONS),
    ]:
        file = tmp_path / name
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        files.append(str(file))
    options = ["-m", metric, "--score-only", "--width", "6"]
    printed = subprocess.run(
        [sys.executable, "-m", "sacrebleu", *files[:2], "-i", files[2], *options],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    value, rows = getattr(text, metric)(PREDICTIONS, REFERENCES)
    assert value == pytest.approx(float(printed), abs=1e-6)
    assert len(rows) == 3


def test_bleu_of_one_sentence_by_hand() -> None:
    # 6 of 7 words, 4 of 6 pairs, 2 of 5 triples, 1 of 4 fours; equal length, no penalty.
    value, _ = text.bleu(["one two three four five six x"], [["one two three four y five six"]])
    precisions = (6 / 7) * (4 / 6) * (2 / 5) * (1 / 4)
    assert value == pytest.approx(100 * precisions**0.25)


@pytest.mark.parametrize("metric", [text.bleu, text.chrf])
def test_perfect_and_uneven_references(metric: object) -> None:
    uneven = [REFERENCES[0], REFERENCES[1][:1]]
    value, rows = metric([row[-1] for row in uneven], uneven)  # type: ignore[operator]
    assert value == pytest.approx(100.0)
    assert rows == pytest.approx([100.0, 100.0])
    value, rows = metric(["", "x"], [["red"], [""]])  # type: ignore[operator]
    assert 0.0 <= value < 1.0
    assert len(rows) == 2
