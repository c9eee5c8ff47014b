"""What the trials of a search do, each in a process of its own.

A trial leaves one folder a run, `run-0`, `run-1`, …: `adapter/`, and `checkpoints/` for a later
trial to go on from. All runs of a trial train at once on one base.
"""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorakit.adapters.attached import remember_rows
from lorakit.adapters.pairs import read_stored
from lorakit.data import TokenTable
from lorakit.errors import DataError, DivergedError
from lorakit.experiments import Report
from lorakit.experiments.kinds import typed
from lorakit.experiments.measuring import RowLosses, measure_rows, save_pairs, spread_rows
from lorakit.experiments.opening import TrialContext, ask_held_out, open_trial
from lorakit.experiments.stamps import Sources
from lorakit.kernels.chosen import kernels_of
from lorakit.lora import plan
from lorakit.lora.jobs import Jobs
from lorakit.ranking.pairs import MeanPairs, put_pairs
from lorakit.ranking.trials import (
    EVALUATION_TOKENS,
    AnswerRequest,
    AnswerResult,
    RankRun,
    RunLosses,
    TrainRequest,
    TrainResult,
)
from lorakit.run.fitting import Work, fit_models, orders_of
from lorakit.run.rehearsing import trained_after
from lorakit.training import Checkpoints, FitResult, Observers, Schedule, TrainSpec


@dataclass
class RunRecorder:
    """Notes the steps of a run, and passes them on.

    Attributes:
        rank: of the run.
        until: steps that are reported as the whole.
        report: told of each step.
        mean: of the pairs, told of each step too.
        losses, tokens: what was noted.
    """

    rank: int
    until: int
    report: Report
    mean: MeanPairs | None = None
    losses: list[float] = field(default_factory=list)
    tokens: int = 0

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take an event of the loop."""
        if event["kind"] != "train":
            return
        self.losses.append(event["loss"])
        self.tokens += event["tokens"]
        if self.mean is not None:
            self.mean.note(event["step"])
        self.report({**event, "steps": self.until, "rank": self.rank})


@typed(TrainRequest)
def train(request: TrainRequest, sources: Sources, folder: Path, report: Report) -> TrainResult:
    """Take concurrent runs to a step, and measure each on held-out rows.

    Args:
        request: what is asked for.
        sources: of rows and base.
        folder: of the trial; those that it goes on from lie beside it.
        report: told of the steps.
    """
    context = open_trial(request.stamp, sources)
    model, runs = context.model, request.runs
    specs = [
        replace(context.config.lora, rank=run.rank, rank_pattern=dict(run.pattern)) for run in runs
    ]
    jobs = Jobs(model, [plan(model, spec) for spec in specs], [run.seed for run in runs])
    recorders = [
        RunRecorder(
            run.rank, request.until, report, MeanPairs(jobs, i, request.until - request.average)
        )
        for i, run in enumerate(runs)
    ]
    works = []
    for i, (run, recorder) in enumerate(zip(runs, recorders, strict=True)):
        own = folder / f"run-{i}"
        _prepare_run(run, jobs, i, own)
        schedule = Schedule(
            request.steps, run.rate, schedule_of(context, run.seed, run.rate, request.steps),
            until=request.until,
        )  # fmt: skip
        works.append(
            Work(
                context.data.train,
                context.data.eval.take(()),
                schedule,
                Observers(report=recorder),
                Checkpoints(
                    own,
                    resume=run.resumes is not None,
                    kernels=kernels_of(context.session.model).name,
                ),
            )
        )
    batch_tokens = context.config.train.batch_tokens
    fitted = fit_models(jobs, works, batch_tokens=batch_tokens, recompute=request.recompute)
    table = spread_rows(context.data.eval, request.rows)
    results = []
    for i, (how, recorder) in enumerate(zip(fitted, recorders, strict=True)):
        result = _result(context, jobs, i, how, recorder, table)
        results.append(result)
        own = folder / f"run-{i}"
        if request.save and not result.diverged:
            jobs.install(i)
            spec, data = works[i].schedule.spec, context.data
            orders = orders_of(len(data.train), spec, request.steps)
            rows = trained_after(None, data.train_hashes, orders, request.until)
            remember_rows(model, rows)
            save_pairs(context.session, own / "adapter", context.config)
        elif not request.save:  # nobody goes on from a short run
            shutil.rmtree(own)
    return TrainResult(tuple(results), table.tokens)


def _prepare_run(run: RankRun, jobs: Jobs, job: int, own: Path) -> None:
    """Make the folder of a run, with the checkpoint or the pairs that it begins with."""
    own.mkdir()
    trials = own.parent.parent
    if run.resumes is not None:
        before = trials / run.resumes.trial / f"run-{run.resumes.run}"
        shutil.copytree(before / "checkpoints", own / "checkpoints")
    elif run.starts_with is not None:
        put_pairs(jobs, job, read_stored(run.starts_with.folder(trials)))


def _result(
    context: TrialContext,
    jobs: Jobs,
    job: int,
    how: FitResult | DivergedError,
    recorder: RunRecorder,
    table: TokenTable,
) -> RunLosses:
    tokens, losses = recorder.tokens, tuple(recorder.losses)
    if isinstance(how, DivergedError):
        return RunLosses(str(how), None, tokens, losses, 0.0)
    assert recorder.mean is not None
    with recorder.mean.in_place():
        held_out = measure_job(context, jobs, job, table)
    if not math.isfinite(held_out.loss):
        return RunLosses("not finite at the end", None, tokens, losses, how.seconds)
    return RunLosses("", held_out, tokens, losses, how.seconds)


@typed(AnswerRequest)
def answer(request: AnswerRequest, sources: Sources, folder: Path, report: Report) -> AnswerResult:
    """Generate answers of an adapter to held-out prompts, and score them.

    Args:
        request: what is asked for.
        sources: of rows and base.
        folder: of the trial.
        report: told of the stage.
    """
    context = open_trial(request.stamp, sources)
    model = context.model
    stored = read_stored(request.adapter.folder(folder.parent))
    jobs = Jobs(model, [plan(model, stored.spec)], [0])
    put_pairs(jobs, 0, stored)
    report({"kind": "stage", "name": "answer"})
    jobs.install(0)
    asked = ask_held_out(context, request.samples, request.max_new_tokens, request.metric)
    if asked.scores is None:
        raise DataError("metric: the held-out rows have no answers to score; leave it out")
    return AnswerResult(asked.scores, asked.answers, asked.tokens)


def measure_job(context: TrialContext, jobs: Jobs, job: int, table: TokenTable) -> RowLosses:
    """Losses of rows with the pairs of one job, whose layers stand in the model afterwards."""
    tokens = context.config.train.batch_tokens
    if context.model.device.type == "cpu":
        tokens = min(EVALUATION_TOKENS, tokens)
    jobs.install(job)
    return measure_rows(context.model, table, tokens)


def schedule_of(context: TrialContext, seed: int, rate: float, steps: int) -> TrainSpec:
    """A run's own options; it is measured by the trial, so nothing is evaluated within."""
    return replace(
        context.config.train,
        seed=seed,
        keep="last",
        learning_rate=rate,
        eval_every=steps,
        checkpoint_every=steps,
    )
