"""Which word an interval allows, and how often each is said wrongly, over many simulated experiments."""

import numpy as np
import pytest

from lorakit.evaluation.crossed import CrossedInterval, crossed_mean, with_seed_noise
from lorakit.evaluation.verdict import LEAST_ROWS, judge, share_of_level


def d(low, high, *, seeds=3, rows=100, of_rows=0.9):
    return CrossedInterval((low + high) / 2, low, high, 0.95, seeds, rows, of_rows, 1000)


@pytest.mark.parametrize(
    ("low", "high", "word", "beyond"),
    [
        (-0.30, -0.20, "better", True),
        (-0.30, -0.05, "better", False),
        (0.05, 0.30, "worse", False),
        (0.20, 0.30, "worse", True),
        (-0.05, 0.09, "equal", False),
        (0.02, 0.09, "equal", False),  # certain, and certainly less than what matters
        (-0.05, 0.11, "cannot be told", False),
        (-5.4, 7.2, "cannot be told", False),
        (-88.0, 71.0, "cannot be told", False),
    ],
)
def test_the_words_at_a_margin_of_a_tenth(low, high, word, beyond):
    said = judge(d(low, high), 0.1)
    assert (said.word, said.beyond) == (word, beyond)
    assert bool(said.needs) == (word == "cannot be told") == (not said.told)


def test_what_is_better_where_more_is_better():
    assert judge(d(0.2, 0.3), 0.1, lower_is_better=False).word == "better"
    assert judge(d(-0.3, -0.2), 0.1, lower_is_better=False).word == "worse"


def test_without_a_margin_nothing_is_equal():
    assert judge(d(-1e-6, 1e-6), None).word == "cannot be told"
    assert judge(d(-1e-6, 1e-6), 0.0).word == "cannot be told"


def test_too_few_rows_or_seeds_and_what_would_do():
    few = judge(d(-0.3, -0.2, rows=LEAST_ROWS - 1), 0.1)
    assert few.word == "cannot be told"
    assert "12 at least; there are 11" in few.needs[0]
    assert judge(None, 0.1, rows_measured=8).needs == (
        "more held-out rows (12 at least; there are 8)",
    )
    one = judge(d(-0.3, -0.2, seeds=1), 0.1, more_seeds="--seeds 3")
    assert (one.word, one.needs) == ("cannot be told", ("--seeds 3 (one says nothing of others)",))
    assert judge(None, 0.1, least_rows=0).needs == ("more seeds (one says nothing of others)",)
    assert judge(d(-0.3, -0.2, rows=0), 0.1, least_rows=0).word == "better"
    assert judge(d(-0.3, -0.2, seeds=1), 0.1, least_seeds=1).word == "better"
    assert judge(d(-0.3, -0.2), 0.1, refused=("longer runs",)).needs == ("longer runs",)


def test_what_would_tell_is_what_there_is_too_little_of():
    assert "held-out rows" in judge(d(-0.2, 0.3, of_rows=0.9), 0.1).needs[0]
    seeds = judge(d(-0.2, 0.2, of_rows=0.1), 0.1).needs[0]
    # Half as wide is four times as many.
    assert seeds == "more seeds, about 4 times as many"
    assert "over 100 times" in judge(d(-3.0, 3.0), 0.1).needs[0]


def test_several_questions_share_the_risk():
    assert share_of_level(0.95, 1) == pytest.approx(0.95)
    assert share_of_level(0.95, 4) == pytest.approx(0.9875)


# --- how often a word is wrong: row effects, seed effects, and noise of each run on each row

TAILS = {
    "normal": lambda draw, size: draw.standard_normal(size),
    "heavy": lambda draw, size: draw.standard_t(3, size) / np.sqrt(3),
    "skewed": lambda draw, size: draw.exponential(size=size) - 1,
}
TRIALS, MARGIN = 400, 0.5


def measured(draw, tails, seeds, rows, of_seeds, truth=0.0):
    """Differences of two arms by seed and row; the arms' own seeds differ, their rows are the same."""
    noise = TAILS[tails]
    values = truth + of_seeds * draw.standard_normal((seeds, 1))
    return values + noise(draw, (1, rows)) + 0.5 * noise(draw, (seeds, rows))


def said(draw, values):
    tokens = draw.integers(2, 30, values.shape[1]).astype(float)
    return judge(crossed_mean(values, tokens, generator=draw, resamples=100), MARGIN)


def shares(tails, seeds, rows, of_seeds, truth):
    draw = np.random.default_rng(5)
    words = [
        said(draw, measured(draw, tails, seeds, rows, of_seeds, truth)).word for _ in range(TRIALS)
    ]
    return {word: words.count(word) / TRIALS for word in set(words)}


# What is wrong in 5 of 100 cases is seen, in 400 simulations, in fewer than 7.8 of 100 (2.5 standard deviations).
AT_MOST = 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / TRIALS)


@pytest.mark.parametrize("tails", TAILS)
@pytest.mark.parametrize(
    ("seeds", "rows", "of_seeds"),
    [(2, 12, 0.1), (3, 12, 0.0), (3, 40, 0.0), (3, 20, 0.4), (5, 80, 0.4), (3, 60, 2)],
)
class TestNoise:
    def test_of_equal_arms_better_is_hardly_ever_said(self, tails, seeds, rows, of_seeds):
        found = shares(tails, seeds, rows, of_seeds, truth=0.0)
        assert found.get("better", 0) + found.get("worse", 0) <= AT_MOST

    def test_of_arms_that_differ_by_the_margin_equal_is_hardly_ever_said(
        self, tails, seeds, rows, of_seeds
    ):
        for sign in (-1, 1):
            found = shares(tails, seeds, rows, of_seeds, truth=1.02 * sign * MARGIN)
            assert found.get("equal", 0) <= AT_MOST


def test_eight_rows_say_nothing():
    draw = np.random.default_rng(0)
    for truth in (0.0, 1.0):
        values = measured(draw, "normal", 3, 8, 0.1, truth)
        assert said(draw, values).word == "cannot be told"


def test_clear_differences_and_clear_equality_are_told():
    """A word that is never said would never be wrong."""
    assert shares("normal", 3, 60, 0.1, truth=1.5)["worse"] > 0.9
    assert shares("heavy", 3, 60, 0.1, truth=-1.5)["better"] > 0.9
    assert shares("normal", 3, 200, 0.02, truth=0.0)["equal"] > 0.9


def test_one_seed_with_noise_known_from_three_short_runs():
    """What a search for a rank has: equal ranks, of which each was trained once."""
    draw, wrong, told = np.random.default_rng(3), 0, 0
    for truth in (0.0, 3.0):
        for _ in range(TRIALS):
            noise = 0.2
            values = measured(draw, "heavy", 1, 60, noise * np.sqrt(2), truth)
            short = noise * draw.standard_normal(3)
            interval = crossed_mean(values, generator=draw, resamples=100)
            wide = with_seed_noise(interval, 2 * short.var(ddof=1), 2)
            word = judge(wide, MARGIN, least_seeds=1).word
            wrong += word in ("better", "worse") and not truth
            told += word == "worse" and truth > 0
    assert wrong / TRIALS <= AT_MOST
    assert told / TRIALS > 0.8


@pytest.mark.parametrize(("ours", "theirs"), [(0.95, 1.0), (0.5, 0.6), (0.9, 1.0)])
def test_scores_that_differ_by_more_than_the_margin_are_not_called_equal(ours, theirs):
    """Exact match of 64 answers, at a margin of 4 points; the rarer the failures, the harder."""
    draw, wrong = np.random.default_rng(1), 0
    for _ in range(TRIALS):
        values = (draw.random((2, 64)) < ours) * 1.0 - (draw.random((2, 64)) < theirs)
        interval = crossed_mean(values, generator=draw, bounds=(-1.0, 1.0))
        wrong += judge(interval, 0.04, lower_is_better=False).word == "equal"
    assert wrong / TRIALS <= AT_MOST
