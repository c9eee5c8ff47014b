"""Trials that make ranks of other ranks: cutting an adapter, and training all prefixes of a pair."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lorakit.adapters.pairs import read_stored
from lorakit.adapters.shrink import shrink
from lorakit.adapters.specs import ShrinkSpec
from lorakit.experiments import Report
from lorakit.experiments.kinds import TrialKind, typed
from lorakit.experiments.measuring import RowLosses, save_pairs, spread_rows
from lorakit.experiments.opening import TrialContext, open_trial
from lorakit.experiments.stamps import Sources, Stamp
from lorakit.lora import plan
from lorakit.lora.jobs import Jobs
from lorakit.ranking.alternatives.nested import fit_nested
from lorakit.ranking.pairs import put_pairs
from lorakit.ranking.trials import AdapterRef
from lorakit.ranking.workers import RunRecorder, measure_job, schedule_of


@dataclass(frozen=True)
class CutRequest:
    """An adapter to be cut to several ranks, each measured on so many held-out rows."""

    stamp: Stamp
    adapter: AdapterRef
    ranks: tuple[int, ...]
    rows: int


@dataclass(frozen=True)
class NestRequest:
    """All prefixes of a pair trained in one run, each measured on so many held-out rows."""

    stamp: Stamp
    ranks: tuple[int, ...]
    rate: float
    seed: int
    steps: int
    rows: int
    recompute: bool


@dataclass(frozen=True)
class RanksResult:
    """Losses by rank, tokens of the rows they were measured on, and tokens trained on."""

    points: Mapping[str, RowLosses]
    measured_tokens: int
    trained_tokens: int


CUT = TrialKind("lorakit.ranking.alternatives.trials:cut", CutRequest, RanksResult)
NEST = TrialKind("lorakit.ranking.alternatives.trials:nest", NestRequest, RanksResult)


@typed(CutRequest)
def cut(request: CutRequest, sources: Sources, folder: Path, report: Report) -> RanksResult:
    """Cut an adapter to several ranks and measure each on the held-out rows.

    Leaves `rank-K/`, adapters whose scale is alpha/K like that of any other, A and B balanced.

    Args:
        request: what is asked for.
        sources: of rows and base.
        folder: of the trial; that of the adapter lies beside it.
        report: told of the cuts.
    """
    context = open_trial(request.stamp, sources)
    stored = read_stored(request.adapter.folder(folder.parent))
    jobs = _jobs(context, request.ranks, 0)
    for i, rank in enumerate(request.ranks):
        report({"kind": "stage", "name": f"cut to {rank}"})
        put_pairs(jobs, i, shrink(stored, ShrinkSpec(rank=rank)).adapter)
    return _measured(context, jobs, request.ranks, request.rows, folder, 0)


@typed(NestRequest)
def nest(request: NestRequest, sources: Sources, folder: Path, report: Report) -> RanksResult:
    """Train all prefixes in one run, and measure each on the held-out rows. Leaves `rank-K/`.

    Args:
        request: what is asked for.
        sources: of rows and base.
        folder: of the trial.
        report: told of the steps.
    """
    context = open_trial(request.stamp, sources)
    jobs = _jobs(context, request.ranks, request.seed)
    recorder = RunRecorder(request.ranks[-1], request.steps, report)
    fit_nested(
        jobs,
        context.data.train,
        schedule_of(context, request.seed, request.rate, request.steps),
        steps=request.steps,
        learning_rate=request.rate,
        recompute=request.recompute,
        report=recorder,
    )
    return _measured(context, jobs, request.ranks, request.rows, folder, recorder.tokens)


def _jobs(context: TrialContext, ranks: tuple[int, ...], seed: int) -> Jobs:
    specs = [replace(context.config.lora, rank=rank) for rank in ranks]
    return Jobs(context.model, [plan(context.model, spec) for spec in specs], [seed for _ in specs])


def _measured(
    context: TrialContext,
    jobs: Jobs,
    ranks: tuple[int, ...],
    rows: int,
    folder: Path,
    trained_tokens: int,
) -> RanksResult:
    """Measure the job of each rank, and save its adapter."""
    table = spread_rows(context.data.eval, rows)
    points = {}
    for i, rank in enumerate(ranks):
        points[str(rank)] = measure_job(context, jobs, i, table)
        save_pairs(context.session, folder / f"rank-{rank}", context.config)
    return RanksResult(points, table.tokens, trained_tokens)
