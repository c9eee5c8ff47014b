"""What an unfinished run is measured with."""

import pytest
import torch

from families import tiny
from lorakit.experiments.records import from_json, to_json
from lorakit.experiments.stamps import Sources
from lorakit.lora import LoraSpec, plan
from lorakit.lora.jobs import Jobs
from lorakit.ranking.command import first_stamp
from lorakit.ranking.pairs import MeanPairs
from lorakit.ranking.spec import FORM
from lorakit.ranking.trials import RankRun, RunRef, TrainRequest, TrainResult
from lorakit.ranking.workers import train


def jobs_of(*ranks):
    model = tiny("llama")
    return Jobs(model, [plan(model, LoraSpec(rank=rank)) for rank in ranks], [0 for _ in ranks])


def pairs(jobs, job):
    return [x for layer in jobs.layers[job].values() for x in (layer.A, layer.B)]


@torch.no_grad()
def test_the_mean_is_over_the_steps_after_the_given_one_and_leaves_the_pairs():
    jobs = jobs_of(2, 4)
    mean, others = MeanPairs(jobs, 1, after=2), [x.clone() for x in pairs(jobs, 0)]
    generator, seen = torch.Generator().manual_seed(0), []
    for step in range(1, 6):
        for x in pairs(jobs, 1):
            x.copy_(torch.randn(x.shape, generator=generator))
        seen.append([x.clone() for x in pairs(jobs, 1)])
        mean.note(step)
    with mean.in_place():
        for i, x in enumerate(pairs(jobs, 1)):
            torch.testing.assert_close(x, torch.stack([s[i] for s in seen[2:]]).mean(0))
        for x, before in zip(pairs(jobs, 0), others, strict=True):
            assert torch.equal(x, before)
    for x, last in zip(pairs(jobs, 1), seen[-1], strict=True):
        assert torch.equal(x, last)


def test_a_run_that_is_measured_at_its_end_has_no_mean():
    jobs = jobs_of(2)
    mean, before = MeanPairs(jobs, 0, after=5), [x.clone() for x in pairs(jobs, 0)]
    for step in range(1, 6):
        mean.note(step)
    with mean.in_place():
        for x, was in zip(pairs(jobs, 0), before, strict=True):
            assert torch.equal(x, was)


@pytest.fixture
def trial(small, easy, tmp_path):
    """A trial of the worker that trains, to a step."""
    config = FORM.read(None, {**small, "data": (str(easy),), "out": str(tmp_path / "out")}).config

    def call(name, until, *, average=0, resumes=None):
        run = RankRun(4, 0.005, 0, {}, resumes)
        request = TrainRequest(
            first_stamp(config), (run,), 8, until, rows=8, save=True, recompute=False,
            average=average,
        )  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        sources = to_json(Sources.of(config))
        plain = train(to_json(request), sources, folder, lambda event: None)
        return from_json(TrainResult, plain).runs[0]

    return call


def test_measuring_with_a_mean_changes_the_figure_and_not_the_run(trial):
    plain, averaged = trial("plain", 4), trial("averaged", 4, average=3)
    assert averaged.held_out != plain.held_out
    assert averaged.train_losses == plain.train_losses
    ends = [trial(f"end-of-{name}", 8, resumes=RunRef(name, 0)) for name in ("plain", "averaged")]
    assert ends[0].held_out == ends[1].held_out
