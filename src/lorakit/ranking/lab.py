"""A `Lab` whose work is trials: what was done once is kept, and every FLOP is counted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorakit.errors import DivergedError
from lorakit.evaluation.metrics import MetricScore
from lorakit.experiments import Outcome, Report, Runner, Trial
from lorakit.experiments.kinds import Request, Result, TrialKind
from lorakit.experiments.stamps import Sources, Stamp
from lorakit.ranking.choose import Measured
from lorakit.ranking.profile import LEAST_ROWS, early_rows
from lorakit.ranking.search import Candidate
from lorakit.ranking.trials import (
    ANSWER,
    TRAIN,
    AdapterRef,
    AnswerRequest,
    RankProfile,
    RankRun,
    RunLosses,
    RunRef,
    TrainRequest,
    TrainResult,
)


@dataclass(frozen=True)
class ShortRun:
    """A short run of the probe or for the seed noise; `measured` is None where it diverged."""

    measured: Measured | None
    steps: int

    @property
    def loss(self) -> float | None:
        """Nats per token on the held-out rows that it was measured on."""
        return None if self.measured is None else self.measured.loss


class Ledger:
    """FLOPs by what they were for.

    Attributes:
        phase: of the search that is under way.
        flops: by phase.
    """

    def __init__(self, profile: RankProfile) -> None:
        self._profile = profile
        self.phase = "search"
        self.flops: dict[str, float] = {}

    @property
    def spent(self) -> float:
        """All so far, in runs at the highest rank."""
        return sum(self.flops.values()) / self._profile.run_flops

    def training(self, rank: int, tokens: float) -> None:
        """Count training at a rank."""
        self.training_of(self._profile.parameters(rank), tokens)

    def training_of(self, parameters: int, tokens: float) -> None:
        """Count training of so many parameters of an adapter."""
        self._add(self._profile.profile.training_flops(parameters, tokens))

    def evaluation(self, rank: int, tokens: float) -> None:
        """Count measuring at a rank; rank 0 is the base."""
        parameters = self._profile.parameters(rank)
        self._add(self._profile.profile.evaluation_flops(parameters, tokens))

    def _add(self, flops: float) -> None:
        self.flops[self.phase] = self.flops.get(self.phase, 0.0) + flops


class TrialLab:
    """Trains and measures by trials.

    Args:
        profile: of the first trial.
        stamp: what every trial depends on.
        sources: of rows and base.
        runner: does the trials.
        report: told of each phase.
        average: share of a run over whose last steps A and B are averaged for a measurement before
            its end.

    Attributes:
        profile: see above.
        ledger: FLOPs by phase.
        curves: training loss of each step of a candidate, as far as it has come.
        points: all measurements of candidates, by step.
    """

    def __init__(
        self,
        profile: RankProfile,
        stamp: Stamp,
        sources: Sources,
        runner: Runner,
        report: Report,
        average: float,
    ) -> None:
        self._average, self.profile, self.stamp, self._sources = average, profile, stamp, sources
        self._runner, self._report = runner, report
        self._at: dict[Candidate, RunRef] = {}
        self.ledger = Ledger(profile)
        self.curves: dict[Candidate, list[float]] = {}
        self.points: dict[Candidate, dict[int, Measured]] = {}

    @property
    def steps(self) -> int:
        """Steps of a whole run."""
        return self.profile.steps

    @property
    def spent(self) -> float:
        """See `Lab`."""
        return self.ledger.spent

    @property
    def measuring(self) -> float:
        """See `Lab`."""
        base = self.profile.profile
        parameters = self.profile.parameters(self.profile.highest)
        return base.evaluation_flops(parameters, base.eval_tokens) / self.profile.run_flops

    # --- what a search asks for

    def train(self, candidates: Sequence[Candidate], until: int) -> Mapping[Candidate, Measured]:
        """See `Lab`; candidates that are there already are not trained again."""
        return self._train(candidates, until, concurrent=len(candidates))

    def grid(
        self, candidates: Sequence[Candidate], concurrent: int = 1
    ) -> Mapping[Candidate, Measured]:
        """Whole runs, so many on one base in a trial, as many trials at once as the runner allows."""
        return self._train(candidates, self.steps, concurrent=concurrent)

    # --- what the protocol asks for besides

    def short(self, candidates: Sequence[Candidate], steps: int) -> dict[Candidate, ShortRun]:
        """Runs with a whole schedule of so many steps, measured on some of the held-out rows."""
        if not candidates:
            return {}
        rows = min(LEAST_ROWS, self.profile.profile.eval_rows)
        runs = [_run_of(candidate) for candidate in candidates]
        request = self.train_request(runs, steps, steps, rows=rows, save=False)
        result = self.run(TRAIN, request, f"{len(candidates)} short runs of {steps} steps")
        short = {}
        for candidate, run in zip(candidates, result.runs, strict=True):
            self.count(candidate.rank, run, result)
            point = None if run.held_out is None else measured_of(run, steps)
            short[candidate] = ShortRun(point, steps)
        return short

    def answer(
        self, candidate: Candidate, metric: str, samples: int, max_new_tokens: int
    ) -> MetricScore:
        """The score of a candidate's answers to held-out prompts."""
        request = AnswerRequest(
            self.stamp, self.adapter(candidate), metric, samples, max_new_tokens
        )
        result = self.run(ANSWER, request, f"answers of rank {candidate.rank}")
        base = self.profile.profile
        asked = base.eval_tokens * min(1.0, samples / max(1, base.eval_rows))
        self.ledger.evaluation(candidate.rank, result.tokens + asked)
        return result.scores.metrics[0]

    def count_profile(self) -> None:
        """Count what the first trial measured of the base."""
        self.ledger.evaluation(0, self.profile.base_tokens + self.profile.prior_tokens)

    def adapter(self, candidate: Candidate) -> AdapterRef:
        """The adapter of a candidate as it is now."""
        run = self._at[candidate]
        return AdapterRef(run.trial, f"run-{run.run}/adapter")

    # --- trials

    def train_request(
        self, runs: Sequence[RankRun], steps: int, until: int, *, rows: int, save: bool = True
    ) -> TrainRequest:
        """What a training trial is given; an unfinished run is measured with the mean of its pairs."""
        average = max(1, math.ceil(self._average * steps)) if until < steps else 0
        return TrainRequest(
            self.stamp,
            tuple(runs),
            steps,
            until,
            rows,
            save,
            self.profile.estimate.recompute,
            average,
        )

    def run(self, kind: TrialKind[Request, Result], request: Request, label: str) -> Result:
        """The result of one trial."""
        return self.run_keyed(kind, request, label)[1]

    def run_keyed(
        self, kind: TrialKind[Request, Result], request: Request, label: str
    ) -> tuple[str, Result]:
        """The key of one trial, and its result."""
        (outcome,) = self._outcomes([kind.trial(request, self._sources, label)])
        return outcome.trial.key, kind.result_of(outcome)

    def _outcomes(self, trials: Sequence[Trial]) -> list[Outcome]:
        self._report({"kind": "phase", "name": self.ledger.phase, "trials": len(trials)})
        done = {outcome.trial.key: outcome for outcome in self._runner(trials)}
        return [done[trial.key] for trial in trials]

    def count(self, rank: int, run: RunLosses, result: TrainResult) -> None:
        """Count a run of a trial."""
        self.ledger.training(rank, run.tokens)
        if not run.diverged:
            self.ledger.evaluation(rank, result.measured_tokens)

    def _train(
        self, candidates: Sequence[Candidate], until: int, *, concurrent: int
    ) -> dict[Candidate, Measured]:
        missing = [each for each in candidates if until not in self.points.get(each, {})]
        few = max(1, concurrent)
        groups = [missing[start : start + few] for start in range(0, len(missing), few)]
        trials = []
        for group in groups:
            runs = [_run_of(each, self._at.get(each)) for each in group]
            request = self.train_request(runs, self.steps, until, rows=self._rows(until))
            named = ", ".join(f"rank {each.rank}" for each in group)
            trials.append(TRAIN.trial(request, self._sources, f"{named} to step {until}"))
        if trials:
            for group, outcome in zip(groups, self._outcomes(trials), strict=True):
                self._note(group, outcome, until)
        return {each: self.points[each][until] for each in candidates}

    def _note(self, group: Sequence[Candidate], outcome: Outcome, until: int) -> None:
        result = TRAIN.result_of(outcome)
        for i, (candidate, run) in enumerate(zip(group, result.runs, strict=True)):
            self.count(candidate.rank, run, result)
            point = measured_of(run, until, f"rank {candidate.rank}")
            self._at[candidate] = RunRef(outcome.trial.key, i)
            self.curves.setdefault(candidate, []).extend(run.train_losses)
            self.points.setdefault(candidate, {})[until] = point

    def _rows(self, until: int) -> int:
        """Held-out rows of a measurement: all at the end of a run, before it some."""
        rows = self.profile.profile.eval_rows
        return rows if until == self.steps else early_rows(rows)


def _run_of(candidate: Candidate, resumes: RunRef | None = None) -> RankRun:
    pattern = dict(candidate.pattern)
    return RankRun(candidate.rank, candidate.rate, candidate.seed, pattern, resumes)


def measured_of(run: RunLosses, step: int, label: str = "a run") -> Measured:
    """Held-out losses of a run.

    Raises:
        DivergedError: it has none.
    """
    if run.held_out is None:
        raise DivergedError(f"{label}: {run.diverged}")
    return Measured(np.array(run.held_out.nats), np.array(run.held_out.tokens), step)
