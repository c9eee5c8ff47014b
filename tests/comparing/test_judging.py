"""What is said of an arm beside the reference: by intervals and margins, and never more than they allow."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from lorakit.comparing import differences
from lorakit.comparing.judging import difference
from lorakit.comparing.spec import CompareSpec
from lorakit.comparing.wording import margins

ROWS = 60


def rows(mean, spread, *, seeds=3, of_seeds=0.0, draw=None, count=ROWS):
    """Values by seed and row whose mean is exact, with seeds that lie apart as given."""
    draw = np.random.default_rng(0) if draw is None else draw
    values = draw.standard_normal(count)
    values = mean + spread * (values - values.mean())
    apart = np.linspace(-1, 1, seeds) if seeds > 1 else np.zeros(1)
    return values + of_seeds * apart[:, None]


def run(loss_N, kl_N, peak=1e9, pace=1.0, exact=None):
    losses = SimpleNamespace(nats=tuple(loss_N), tokens=(1.0,) * len(loss_N))
    general = SimpleNamespace(kl=kl_N, loss=kl_N, tokens=(1.0,) * len(kl_N))
    measured = SimpleNamespace(peak_memory_bytes=peak, pace=SimpleNamespace(seconds_per_step=pace))
    return SimpleNamespace(
        result=SimpleNamespace(
            held_out=losses, general=general, measured=measured, scores=None, answers=()
        )
    )


def arm(name, loss_KN, kl_KN, peaks=(1e9, 1e9, 1e9), paces=(1.0, 1.01, 0.99)):
    runs = tuple(run(*each) for each in zip(loss_KN, kl_KN, peaks, paces, strict=False))
    return SimpleNamespace(arm=SimpleNamespace(name=name), runs=runs, rate=1e-3)


def beside(ours, theirs, *, base=3.0, arms=2, **spec):
    """What is said of one arm beside another, whose base had a loss of 3 nats per token."""
    count = len(theirs.runs[0].result.held_out.nats)
    held_out = SimpleNamespace(nats=(base,) * count, tokens=(1.0,) * count)
    findings = SimpleNamespace(
        arms=(None,) * arms, base=SimpleNamespace(held_out=held_out, references=())
    )
    figures = [
        {
            "trainable_parameters": parameters,
            "kl": {"mean": differences.mean(differences.moved(each, "kl"))},
            "measured": {
                "peak_memory_bytes": max(r.result.measured.peak_memory_bytes for r in each.runs),
                "seconds_per_step": 1.0,
                "train_seconds": 1.0,
            },
        }
        for each, parameters in ((ours, 2), (theirs, 100))
    ]
    return difference(ours, figures[0], theirs, figures[1], findings, CompareSpec(**spec))


KL = rows(0.3, 0.01)


def said(ours_loss, ours_kl=KL, theirs_kl=KL, theirs_loss=None, **options):
    theirs_loss = rows(2.0, 0.0) if theirs_loss is None else theirs_loss
    return beside(
        arm("LoRA r=2", ours_loss, ours_kl),
        arm("full fine-tuning", theirs_loss, theirs_kl),
        **options,
    )


@pytest.mark.parametrize(
    ("off", "spread", "of_seeds", "word", "words"),
    [
        # The reference gained 1 nat: the margin is 0.05.
        (-0.10, 0.05, 0.0, "better", "It is better than full fine-tuning here."),
        (0.10, 0.05, 0.0, "worse", "by more than the margin of 5\u00a0%"),
        (0.06, 0.10, 0.0, "worse", "whether by more than the margin"),
        (0.00, 0.05, 0.0, "equal", "equal within the margin, 5\u00a0% of what"),
        (0.02, 0.03, 0.0, "equal", "full fine-tuning is ahead by less than that"),
        (-0.02, 0.03, 0.0, "equal", "it is ahead by less than that"),
        # The same rows, and seeds that lie apart.
        (-0.10, 0.05, 0.1, "cannot be told", "more --seeds"),
        (0.00, 1.00, 0.0, "cannot be told", "more held-out rows"),
    ],
)
def test_the_words_of_the_loss(off, spread, of_seeds, word, words):
    made = said(rows(2.0 + off, spread, of_seeds=of_seeds))
    assert made["verdict"]["word"] == word
    assert words in made["verdict"]["words"]
    assert made["verdict"]["margin"] == pytest.approx(0.05)
    sentence = made["measured"]["sentence"]
    assert ("higher" in sentence, "lower" in sentence) == (word == "worse", word == "better")


def test_one_seed_or_eight_rows_say_nothing_and_name_what_would():
    one = said(rows(1.5, 0.01, seeds=1), KL[:1], KL[:1], rows(2.0, 0.0, seeds=1))
    assert one["verdict"]["word"] == one["kl"]["verdict"]["word"] == "cannot be told"
    assert "more --seeds (one says nothing of others)" in one["verdict"]["words"]
    assert one["loss"]["high"] < 0  # what other rows would give is known all the same
    few = said(rows(1.5, 0.01, count=8), theirs_loss=rows(2.0, 0.0, count=8))
    assert few["verdict"]["word"] == "cannot be told"
    assert "12 at least; there are 8" in few["verdict"]["words"]
    assert few["loss"]["low"] is few["loss"]["high"] is None
    assert few["loss"]["mean"] == pytest.approx(-0.5)
    assert "too few for an interval" in few["measured"]["sentence"]


def test_a_reference_that_gained_nothing_names_no_margin():
    made = said(rows(2.0, 0.001), base=2.0)
    assert (made["verdict"]["gain"], made["verdict"]["gain_kept"]) == (0.0, None)
    assert made["verdict"]["word"] == "cannot be told"  # equal to within what?
    assert said(rows(2.2, 0.001), base=2.0)["verdict"]["word"] == "worse"


def test_forgetting_is_a_ratio_only_where_its_interval_is_one():
    """2.8 times as much at an interval of -5.4 to +7.2 was said once."""
    wide = said(rows(2.0, 0.1), rows(2.8, 3.0, of_seeds=2.0), rows(1.0, 0.5))
    assert wide["kl"]["verdict"]["word"] == "cannot be told"
    assert wide["kl"]["ratio"] is None
    assert "which forgets more cannot be told" in wide["measured"]["sentence"]
    assert "times" not in wide["measured"]["sentence"]

    clear = said(rows(2.0, 0.1), rows(0.1, 0.02), rows(0.3, 0.02))
    assert clear["kl"]["verdict"]["word"] == "better"
    low, high = clear["kl"]["ratio"]
    assert low < 1 / 3 < high < 0.5
    assert "it forgets a third as much" in clear["measured"]["sentence"]

    # Certainly more, but how many times is not known: the reference may hardly forget at all.
    hardly = said(rows(2.0, 0.1), rows(1.0, 0.3), rows(0.02, 0.3, draw=np.random.default_rng(9)))
    assert hardly["kl"]["verdict"]["word"] == "worse"
    assert "it forgets more." in hardly["measured"]["sentence"]

    equal = said(rows(2.0, 0.1), rows(0.301, 0.01), rows(0.3, 0.01))
    assert equal["kl"]["verdict"]["word"] == "equal"
    assert "forgets as much, within the margin of 10" in equal["measured"]["sentence"]


def test_the_interval_of_a_ratio_holds_it_as_often_as_it_says():
    draw, held = np.random.default_rng(1), 0
    weights = np.ones(30)
    for _ in range(100):
        shared = draw.gamma(4.0, 0.25, size=30)
        ours, theirs = (m * shared + 0.2 * draw.standard_normal((3, 30)) for m in (2.0, 1.0))
        low, high = differences.ratio((ours, weights), (theirs, weights))
        held += low <= 2.0 <= high
    assert held >= 92


def test_memory_and_time_are_judged_too():
    def memory(ours, theirs, **options):
        made = beside(
            arm("one", rows(2.0, 0.1), KL, ours),
            arm("other", rows(2.0, 0.1), KL, theirs),
            **options,
        )
        return made["measured"]["verdicts"]["peak_memory_bytes"], made["measured"]["sentence"]

    verdict, sentence = memory((4.0, 4.1, 4.0), (10.0, 10.1, 10.0))
    assert verdict["word"] == "better"
    assert "in 41\u00a0% of the memory (95\u00a0% interval 39" in sentence
    verdict, sentence = memory((10.0, 10.1, 10.0), (10.1, 10.0, 10.1))
    assert verdict["word"] == "equal"
    assert "as much memory, within the margin of 5" in sentence
    verdict, sentence = memory((5.0, 9.0, 14.0), (10.0, 8.0, 10.5))
    assert verdict["word"] == "cannot be told"
    assert "which needs more cannot be told" in sentence
    # To the byte alike: nothing varies, and nothing is uncertain.
    assert memory((8.0, 8.0, 8.0), (8.0, 8.0, 8.0))[0]["word"] == "equal"


def test_welchs_interval_of_a_measured_ratio():
    assert differences.measured_ratio([1.0], [2.0]) is None
    d = differences.measured_ratio([1.0, 1.2, 1.1], [2.0, 2.1, 2.2])
    assert d.mean == pytest.approx(
        math.log((1.0 * 1.2 * 1.1) ** (1 / 3) / (2.0 * 2.1 * 2.2) ** (1 / 3))
    )
    assert d.low < d.mean < d.high < 0


def test_several_arms_share_the_risk_of_one_word():
    """An interval that one arm would have is wider where three arms are held against the reference."""
    ours = rows(2.05, 0.1)
    alone, of_three = said(ours), said(ours, arms=4)
    widths = [made["loss"]["high"] - made["loss"]["low"] for made in (alone, of_three)]
    assert widths[1] > 1.15 * widths[0]
    assert of_three["loss"]["level"] == pytest.approx(1 - 0.05 / 3)


def test_the_margins_are_named():
    spec = CompareSpec(margin=0.02, cost_margin=0.1)
    text = margins(spec.margins).replace("\u00a0", " ")
    for words in ("2.0 % of what", "scores 0.05", "forgetting 10.0 %", "memory and time 10.0 %"):
        assert words in text
