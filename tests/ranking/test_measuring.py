"""What an unfinished run is measured with."""

import pytest
import torch

from families import tiny
from lorakit.lora import LoraSpec, plan
from lorakit.lora.jobs import Jobs
from lorakit.ranking.protocol import _options, _where
from lorakit.ranking.settings import settings
from lorakit.ranking.workers import _Mean, train


def jobs_of(*ranks):
    model = tiny("llama")
    return Jobs(model, [plan(model, LoraSpec(rank=rank)) for rank in ranks], [0 for _ in ranks])


def pairs(jobs, job):
    return [x for layer in jobs.layers[job].values() for x in (layer.A, layer.B)]


@torch.no_grad()
def test_the_mean_is_over_the_steps_after_the_given_one_and_leaves_the_pairs():
    jobs = jobs_of(2, 4)
    mean, company = _Mean(jobs, 1, after=2), [x.clone() for x in pairs(jobs, 0)]
    generator, seen = torch.Generator().manual_seed(0), []
    for step in range(1, 6):
        for x in pairs(jobs, 1):
            x.copy_(torch.randn(x.shape, generator=generator))
        seen.append([x.clone() for x in pairs(jobs, 1)])
        mean.note(step)
    with mean.in_place():
        for i, x in enumerate(pairs(jobs, 1)):
            torch.testing.assert_close(x, torch.stack([s[i] for s in seen[2:]]).mean(0))
        for x, before in zip(pairs(jobs, 0), company, strict=True):
            assert torch.equal(x, before)
    for x, last in zip(pairs(jobs, 1), seen[-1], strict=True):
        assert torch.equal(x, last)


def test_a_run_that_is_measured_at_its_end_has_no_mean():
    jobs = jobs_of(2)
    mean, before = _Mean(jobs, 0, after=5), [x.clone() for x in pairs(jobs, 0)]
    for step in range(1, 6):
        mean.note(step)
    with mean.in_place():
        for x, was in zip(pairs(jobs, 0), before, strict=True):
            assert torch.equal(x, was)


@pytest.fixture
def trial(small, easy, tmp_path):
    """A trial of the worker that trains, to a step."""
    config = settings(None, {**small, "data": (str(easy),), "out": str(tmp_path / "out")}).config

    def call(name, until, **more):
        run = {"rank": 4, "rate": 0.005, "seed": 0, "pattern": {}, **more.pop("source", {})}
        spec = {"config": _options(config), "runs": [run], "steps": 8, "until": until}
        spec |= {"keep": True, "rows": 8, "recompute": False, **more}
        folder = tmp_path / name
        folder.mkdir()
        return train(spec, _where(config), folder, lambda event: None)["runs"][0]

    return call


def test_measuring_with_a_mean_changes_the_figure_and_not_the_run(trial):
    plain, averaged = trial("plain", 4), trial("averaged", 4, average=3)
    assert averaged["rows"] != plain["rows"]
    assert averaged["train_losses"] == plain["train_losses"]
    ends = [
        trial(f"end-of-{name}", 8, source={"from": {"trial": name, "run": 0}})
        for name in ("plain", "averaged")
    ]
    assert ends[0]["rows"] == ends[1]["rows"]
