"""What the trials of a search do, each in a process of its own.

A trial leaves one folder a run, `run-0`, `run-1`, …: `adapter/`, and `checkpoints/` to be gone on
from by a later trial. All runs of a trial train at once on one base.
"""

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lorakit.adapters import save_adapter
from lorakit.adapters.pairs import Pair, StoredAdapter, read_stored
from lorakit.adapters.shrink import ShrinkSpec, shrink
from lorakit.data import TokenTable
from lorakit.errors import DivergedError
from lorakit.evaluation.likelihood import per_token, row_losses
from lorakit.execution.packed import packed_attention
from lorakit.experiments import Report
from lorakit.experiments.opening import Opened, open_run
from lorakit.lora import LoraSpec, plan, spectrum
from lorakit.lora.jobs import Jobs
from lorakit.ranking.look import spread
from lorakit.ranking.nested import fit_nested
from lorakit.run import answers
from lorakit.run.fitting import Work, fit_models
from lorakit.training import fused_blocks

# Most tokens of a forward pass in an evaluation on a CPU, whose memory more would cost and whose
# time less would not save. Elsewhere a pass costs its launches, and is as large as a training pass.
EVALUATION_TOKENS = 1024


def train(
    spec: Mapping[str, Any], where: Mapping[str, Any], folder: Path, report: Report
) -> dict[str, Any]:
    """Take runs to a step, together, and measure each on held-out rows.

    Args:
        spec: "config" and hashes; "runs", each with rank, rate, seed, pattern; "steps" that the
            schedules span, "until" to rest after; "rows" to measure on; "keep", whether their
            adapters and checkpoints are; "recompute"; and for each run one of "from" (the trial and run that it goes on from) and
            "start" (trial and adapter whose pairs it starts with), or neither. "average": if
            given, runs are measured with the mean of their pairs over so many steps.
        where: places.
        folder: of the trial; those that it goes on from lie beside it.
        report: told of the steps.
    """
    opened = open_run(spec, where)
    model, runs = opened.session.model, spec["runs"]
    lora = opened.config.lora
    plans = [plan(model, _lora(lora, run)) for run in runs]
    jobs = Jobs(model, plans, [run["seed"] for run in runs])
    losses: list[list[float]] = [[] for _ in runs]
    tokens = [0 for _ in runs]
    works, means = [], []
    for i, run in enumerate(runs):
        means.append(_Mean(jobs, i, spec["until"] - spec.get("average", 0)))
        own = folder / f"run-{i}"
        own.mkdir()
        if run.get("from"):
            before = folder.parent / run["from"]["trial"] / f"run-{run['from']['run']}"
            shutil.copytree(before / "checkpoints", own / "checkpoints")
        elif run.get("start"):
            source = folder.parent / run["start"]["trial"] / run["start"]["adapter"]
            put_pairs(jobs, i, read_stored(source))
        works.append(
            Work(
                opened.data.train,
                opened.data.eval.take(()),
                _schedule(opened, run, spec),
                spec["steps"],
                run["rate"],
                report=_Teller(i, run, spec, losses, tokens, report, means[i]),
                folder=own,
                resume=bool(run.get("from")),
                until=spec["until"],
            )
        )
    fitted = fit_models(
        jobs,
        works,
        batch_tokens=opened.config.train.batch_tokens,
        recompute=spec["recompute"],
    )
    table = spread(opened.data.eval, spec["rows"])
    told = []
    for i, how in enumerate(fitted):
        if isinstance(how, DivergedError):
            told.append({"diverged": str(how), "tokens": tokens[i], "train_losses": losses[i]})
            continue
        with means[i].in_place():
            found = measure(opened, jobs, i, table)
        found |= {"tokens": tokens[i], "train_losses": losses[i], "step": how.steps}
        found |= {"notes": list(how.notes), "seconds": how.seconds}
        told.append(found)
        if spec["keep"] and not found["diverged"]:
            _save(opened, jobs, i, folder / f"run-{i}" / "adapter")
        else:  # nobody goes on from a probe
            shutil.rmtree(folder / f"run-{i}")
    return {"runs": told, "judged_tokens": table.tokens}


def cut(
    spec: Mapping[str, Any], where: Mapping[str, Any], folder: Path, report: Report
) -> dict[str, Any]:
    """Cut an adapter to several ranks and measure each on the held-out rows.

    Leaves `rank-K/`, adapters whose scale is alpha/K like that of any other, A and B balanced.

    Args:
        spec: "config" and hashes; "from" (trial and adapter folder), "ranks", "rows".
        where: places.
        folder: of the trial.
        report: told of the cuts.
    """
    opened = open_run(spec, where)
    model = opened.session.model
    stored = read_stored(folder.parent / spec["from"]["trial"] / spec["from"]["adapter"])
    plans = [plan(model, replace(opened.config.lora, rank=rank)) for rank in spec["ranks"]]
    jobs = Jobs(model, plans, [0 for _ in plans])
    table = spread(opened.data.eval, spec["rows"])
    points = {}
    for i, rank in enumerate(spec["ranks"]):
        report({"kind": "stage", "name": f"cut to {rank}"})
        put_pairs(jobs, i, shrink(stored, ShrinkSpec(rank=rank)).adapter)
        points[str(rank)] = measure(opened, jobs, i, table)
        _save(opened, jobs, i, folder / f"rank-{rank}")
    return {"points": points, "judged_tokens": table.tokens}


def nest(
    spec: Mapping[str, Any], where: Mapping[str, Any], folder: Path, report: Report
) -> dict[str, Any]:
    """Train all prefixes in one run, and measure each on the held-out rows. Leaves `rank-K/`.

    Args:
        spec: "config" and hashes; "ranks", "rate", "seed", "steps", "rows", "recompute".
        where: places.
        folder: of the trial.
        report: told of the steps.
    """
    opened = open_run(spec, where)
    model, ranks = opened.session.model, spec["ranks"]
    plans = [plan(model, replace(opened.config.lora, rank=rank)) for rank in ranks]
    jobs = Jobs(model, plans, [spec["seed"] for _ in plans])
    losses: list[list[float]] = [[]]
    tokens = [0]
    run = {"rank": ranks[-1], "rate": spec["rate"], "seed": spec["seed"]}
    fit_nested(
        jobs,
        opened.data.train,
        _schedule(opened, run, spec),
        steps=spec["steps"],
        learning_rate=spec["rate"],
        recompute=spec["recompute"],
        report=_Teller(0, run, {**spec, "until": spec["steps"]}, losses, tokens, report),
    )
    table = spread(opened.data.eval, spec["rows"])
    points = {}
    for i, rank in enumerate(ranks):
        points[str(rank)] = measure(opened, jobs, i, table)
        _save(opened, jobs, i, folder / f"rank-{rank}")
    return {
        "points": points,
        "judged_tokens": table.tokens,
        "tokens": tokens[0],
        "train_losses": losses[0],
    }


def ask(
    spec: Mapping[str, Any], where: Mapping[str, Any], folder: Path, report: Report
) -> dict[str, Any]:
    """Answers of an adapter to held-out prompts, scored.

    Args:
        spec: "config" and hashes; "from" (trial and adapter folder), "metric", "samples",
            "max_new_tokens".
        where: places.
        folder: of the trial.
        report: told of the stage.
    """
    opened = open_run(spec, where)
    model = opened.session.model
    stored = read_stored(folder.parent / spec["from"]["trial"] / spec["from"]["adapter"])
    jobs = Jobs(model, [plan(model, stored.spec)], [0])
    put_pairs(jobs, 0, stored)
    report({"kind": "stage", "name": "answer"})
    asked = answers.pick(opened.data.eval_examples, spec["samples"])
    with jobs.alone(0):
        made = answers.ask(opened.session, asked, spec["max_new_tokens"])
    scores = answers.score_answers(asked, made, spec["metric"])
    tokens = sum(len(opened.session.tokenizer.encode(text)) for text in made)
    return {"scores": scores.to_dict(), "answers": made, "tokens": tokens}


def measure(opened: Opened, jobs: Jobs, job: int, table: TokenTable) -> dict[str, Any]:
    """Nats of each row with the pairs of one job."""
    model = opened.session.model
    with jobs.alone(job), packed_attention(model), fused_blocks(model):
        tokens = opened.config.train.batch_tokens
        if model.device.type == "cpu":
            tokens = min(EVALUATION_TOKENS, tokens)
        nats, count = row_losses(model, table, tokens)
    loss = per_token(nats, count)
    if not math.isfinite(loss):
        return {"diverged": "not finite at the end"}
    return {"diverged": "", "loss": loss, "rows": nats.tolist(), "row_tokens": count.tolist()}


@torch.no_grad()
def put_pairs(jobs: Jobs, job: int, stored: StoredAdapter) -> None:
    """Start a job's A and B with those of an adapter of the same ranks, whatever its scale."""
    for path, layer in jobs.layers[job].items():
        A, B = at_scale(stored.pairs[path], layer.scale)
        layer.A.copy_(A)
        layer.B.copy_(B)


def at_scale(pair: Pair, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of the same product at another scale, both changed alike."""
    root = math.sqrt(pair.scale / scale)
    return pair.A * root, pair.B * root


def spectra_of(folder: Path) -> dict[str, list[float]]:
    """Singular values of s·B·A by module, from the largest down."""
    return {
        path: spectrum.spectrum(pair.A, pair.B, pair.scale)[1].tolist()
        for path, pair in read_stored(folder).pairs.items()
    }


class _Mean:
    """The mean of a job's A and B over its steps after a certain one.

    While the rate is high the last step's pairs wander about; two ranks then differ by where each
    happens to be, which the rest of the schedule would settle. Their means over a few steps lie near
    where they would settle (Izmailov et al., arXiv 1803.05407; Kaddour, arXiv 2209.14981).
    """

    def __init__(self, jobs: Jobs, job: int, after: int) -> None:
        self._layers, self._after, self._count = jobs.layers[job], after, 0
        self._sums: list[torch.Tensor] = []

    def _pairs(self) -> list[torch.Tensor]:
        return [x.detach() for layer in self._layers.values() for x in (layer.A, layer.B)]

    def note(self, step: int) -> None:
        """A step is done."""
        if step <= self._after:
            return
        self._count += 1
        if not self._sums:
            self._sums = [x.clone() for x in self._pairs()]
        else:
            torch._foreach_add_(self._sums, self._pairs())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the job has the mean, where there is one; then its own pairs again."""
        own = [x.clone() for x in self._pairs()] if self._sums else []
        for x, total in zip(self._pairs(), self._sums, strict=False):
            x.copy_(total / self._count)
        try:
            yield
        finally:
            for x, before in zip(self._pairs(), own, strict=False):
                x.copy_(before)


class _Teller:
    """Notes a run's steps, and passes them on with the trial's label."""

    def __init__(
        self,
        run: int,
        what: Mapping[str, Any],
        spec: Mapping[str, Any],
        losses: list[list[float]],
        tokens: list[int],
        report: Report,
        mean: "_Mean | None" = None,
    ) -> None:
        self._run, self._what, self._spec, self._mean = run, what, spec, mean
        self._losses, self._tokens, self._report = losses, tokens, report

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["kind"] != "train":
            return
        self._losses[self._run].append(event["loss"])
        self._tokens[self._run] += event["tokens"]
        if self._mean is not None:
            self._mean.note(event["step"])
        self._report({**event, "steps": self._spec["until"], "rank": self._what["rank"]})


def _lora(lora: LoraSpec, run: Mapping[str, Any]) -> LoraSpec:
    return replace(lora, rank=run["rank"], rank_pattern=dict(run.get("pattern") or ()))


def _schedule(opened: Opened, run: Mapping[str, Any], spec: Mapping[str, Any]) -> Any:
    """The run's own schedule; it is measured by the trial, so nothing is evaluated within."""
    return replace(
        opened.config.train,
        seed=run["seed"],
        keep="last",
        learning_rate=run["rate"],
        eval_every=spec["steps"],
        checkpoint_every=spec["steps"],
    )


def _save(opened: Opened, jobs: Jobs, job: int, folder: Path) -> None:
    session = opened.session
    with jobs.alone(job):
        save_adapter(
            session.model,
            folder,
            identity=session.identity,
            provenance={"template": session.template.to_dict()},
        )
