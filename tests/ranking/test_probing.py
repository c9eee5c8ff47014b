"""The probe of learning rates: what goes on, what is dropped, and what the noise runs last."""

import math

import numpy as np
import pytest

from lorakit.config import load_config
from lorakit.experiments.measuring import RowLosses
from lorakit.ranking.probing import probe, seed_noise
from lorakit.ranking.spec import RankSpec

ROWS, STEPS = 32, 100


class Rule:
    """A rule that gives 1e-3, whatever the steps."""

    def rate(self, steps):
        return 1e-3


RULE = Rule()


class Losses:
    """Short runs whose losses are given by a function of rate, steps and seed."""

    steps = STEPS

    def __init__(self, loss, noise=0.0):
        self.loss, self.noise, self.asked = loss, noise, []

    def short(self, runs, steps):
        if not runs:
            return {}
        self.asked.append((steps, sorted((run.rate, run.seed) for run in runs)))
        return {run: self.point(run, steps) for run in runs}

    def point(self, run, steps):
        loss = self.loss(run.rate, steps, run.seed)
        if loss is None:
            return None
        own = np.random.default_rng([run.seed, int(run.rate * 1e6)]).standard_normal(ROWS)
        nats = (loss + self.noise * (own - own.mean())) * 10
        return RowLosses(tuple(nats), (10.0,) * ROWS)


def bowl(best):
    """Losses that rise with the distance of the rate from the best, in decades."""
    return lambda rate, steps, seed: 1 + abs(math.log10(rate / best)) + 0.001 * seed


def test_where_rows_tell_the_best_rate_there_is_one_round():
    lab = Losses(bowl(best=1.9e-3))
    probed = probe(lab, RankSpec(), load_config(None, {}), RULE)
    assert probed.rate == pytest.approx(1.78e-3)
    assert [(steps, len(runs)) for steps, runs in lab.asked] == [(5, 4)]
    # The probe's own run is one of those that the noise is estimated from.
    assert seed_noise(lab, RankSpec(), probed, 0).runs == 3
    assert lab.asked[1:] == [(5, [(1.78e-3, 1), (1.78e-3, 2)])]


def test_what_rows_leave_open_other_seeds_decide():
    """Alike to within the rows' noise with seed 0; with two more seeds the lower rate is better."""

    def loss(rate, steps, seed):
        if not 5e-4 < rate < 2e-3:
            return 1.5
        return 1.0 if rate > 1e-3 or seed == 0 else 0.95

    lab = Losses(loss, noise=0.3)
    probed = probe(lab, RankSpec(), load_config(None, {}), RULE)
    assert [(steps, len(runs)) for steps, runs in lab.asked] == [(5, 4), (5, 4)]
    assert probed.rate == pytest.approx(5.62e-4)
    assert probed.losses == pytest.approx((1.0, 0.95, 0.95))
    second = {point.rate: point.loss for point in probed.points if point.round == 2}
    assert [second[rate] for rate in sorted(second)] == pytest.approx([2.9 / 3, 1.0])
    # The runs for the noise are there already.
    noise = seed_noise(lab, RankSpec(), probed, 0)
    assert (noise.runs, len(lab.asked)) == (3, 2)
    assert noise.noise == pytest.approx(np.std([1.0, 0.95, 0.95], ddof=1) / (2.9 / 3), rel=1e-3)


def test_a_rate_that_diverged_is_out():
    def loss(rate, steps, seed):
        return None if rate > 1e-3 else 1.0 if rate > 5e-4 else 3.0

    probed = probe(Losses(loss, noise=0.3), RankSpec(), load_config(None, {}), RULE)
    assert probed.rate == pytest.approx(5.62e-4)
    assert [point.loss for point in probed.points].count(None) == 2


def test_a_rate_that_diverges_with_another_seed_is_out():
    def loss(rate, steps, seed):
        if not 5e-4 < rate < 2e-3:
            return 1.5
        return 1.0 if rate < 1e-3 else None if seed == 2 else 0.99

    probed = probe(Losses(loss, noise=0.3), RankSpec(), load_config(None, {}), RULE)
    assert probed.rate == pytest.approx(5.62e-4)
    assert len(probed.losses) == 3


def test_a_given_tolerance_leaves_the_noise_to_be_known():
    spec = RankSpec(tolerance="0.5%")
    lab = Losses(lambda rate, steps, seed: 1 + abs(math.log10(rate / 1.9e-3)) + 0.01 * seed)
    probed = probe(lab, spec, load_config(None, {}), RULE)
    found = seed_noise(lab, spec, probed, 0)
    assert found.share == 0.005
    assert found.noise == pytest.approx(0.01 / np.mean(probed.losses[0] + 0.01), rel=1e-2)


def test_a_given_rate_is_not_probed():
    lab = Losses(bowl(1e-3))
    probed = probe(lab, RankSpec(), load_config(None, {"learning_rate": 3e-4}), RULE)
    assert (probed.rate, probed.points, lab.asked) == (3e-4, (), [])
    assert seed_noise(lab, RankSpec(), probed, 0).runs == 3
    assert lab.asked == [(5, [(3e-4, 0), (3e-4, 1), (3e-4, 2)])]
