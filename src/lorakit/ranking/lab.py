"""What has been trained and measured of a search, by trials: nothing twice, and every FLOP counted."""

import math
from collections.abc import Mapping, Sequence

from lorakit.errors import DivergedError
from lorakit.experiments import Outcome, Report, Runner, Trial, in_order
from lorakit.experiments.kinds import Request, Result, TrialKind
from lorakit.experiments.measuring import RowLosses
from lorakit.experiments.stamps import Sources, Stamp
from lorakit.ranking.profile import LEAST_ROWS, early_rows
from lorakit.ranking.trials import (
    TRAIN,
    AdapterRef,
    Candidate,
    RankProfile,
    RankRun,
    RunLosses,
    RunRef,
    TrainRequest,
    TrainResult,
)


class TrialLab:
    """A `Lab` whose work is trials.

    Args:
        profile: of the first trial.
        stamp: what every trial depends on.
        sources: of rows and base.
        runner: does the trials.
        report: told of each phase.
        average: share of a run over whose last steps A and B are averaged for a measurement before
            its end.

    Attributes:
        profile, stamp: see above.
        phase: of the search that is under way.
        flops: by phase.
        curves: training loss of each step of a candidate, as far as it has come.
        points: losses of candidates on held-out rows, by step.
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
        self._latest: dict[Candidate, RunRef] = {}
        self.curves: dict[Candidate, list[float]] = {}
        self.points: dict[Candidate, dict[int, RowLosses]] = {}
        self.phase, self.flops = "profile", dict[str, float]()
        self.count_evaluation(0, profile.base_tokens + profile.prior_tokens)

    @property
    def steps(self) -> int:
        """Steps of a whole run."""
        return self.profile.steps

    # --- what it costs

    @property
    def spent(self) -> float:
        """All so far, in runs at the highest rank."""
        return sum(self.flops.values()) / self.profile.run_flops

    @property
    def measuring(self) -> float:
        """See `Lab`."""
        base = self.profile.profile
        parameters = self.profile.parameters(self.profile.highest)
        return base.evaluation_flops(parameters, base.eval_tokens) / self.profile.run_flops

    def count_training(self, parameters: int, tokens: float) -> None:
        """Count training of so many parameters of an adapter."""
        flops = self.profile.profile.training_flops(parameters, tokens)
        self.flops[self.phase] = self.flops.get(self.phase, 0.0) + flops

    def count_evaluation(self, rank: int, tokens: float) -> None:
        """Count measuring at a rank; rank 0 is the base."""
        flops = self.profile.profile.evaluation_flops(self.profile.parameters(rank), tokens)
        self.flops[self.phase] = self.flops.get(self.phase, 0.0) + flops

    def count(self, rank: int, run: RunLosses, result: TrainResult) -> None:
        """Count a run of a trial."""
        self.count_training(self.profile.parameters(rank), run.tokens)
        if not run.diverged:
            self.count_evaluation(rank, result.measured_tokens)

    # --- what is trained

    def train(
        self, candidates: Sequence[Candidate], until: int, *, concurrent: int | None = None
    ) -> Mapping[Candidate, RowLosses]:
        """Take candidates to this step; those that are there already are not trained again.

        Args:
            candidates: runs, from wherever they are.
            until: the step.
            concurrent: how many of them share a trial, on one base; all by default.

        Raises:
            DivergedError: a run diverged.
        """
        missing = [each for each in candidates if until not in self.points.get(each, {})]
        few = concurrent or max(1, len(candidates))
        groups = [missing[start : start + few] for start in range(0, len(missing), few)]
        # Before the end of a run some of the held-out rows are enough.
        rows = self.profile.profile.eval_rows
        rows = rows if until == self.steps else early_rows(rows)
        trials = []
        for group in groups:
            runs = [each.run(resumes=self._latest.get(each)) for each in group]
            request = self.train_request(runs, self.steps, until, rows=rows)
            named = ", ".join(f"rank {each.rank}" for each in group)
            trials.append(TRAIN.trial(request, self._sources, f"{named} to step {until}"))
        for group, outcome in zip(groups, self._outcomes(trials) if trials else (), strict=True):
            self._record(group, outcome, until)
        return {each: self.points[each][until] for each in candidates}

    def _record(self, group: Sequence[Candidate], outcome: Outcome, until: int) -> None:
        result = TRAIN.result_of(outcome)
        for i, (candidate, run) in enumerate(zip(group, result.runs, strict=True)):
            self.count(candidate.rank, run, result)
            losses = losses_of(run, f"rank {candidate.rank}")
            self._latest[candidate] = RunRef(outcome.trial.key, i)
            self.curves.setdefault(candidate, []).extend(run.train_losses)
            self.points.setdefault(candidate, {})[until] = losses

    def short(
        self, candidates: Sequence[Candidate], steps: int
    ) -> dict[Candidate, RowLosses | None]:
        """Losses after a whole schedule of so few steps, on some of the held-out rows.

        None for a run that diverged.
        """
        if not candidates:
            return {}
        rows = min(LEAST_ROWS, self.profile.profile.eval_rows)
        runs = [candidate.run() for candidate in candidates]
        request = self.train_request(runs, steps, steps, rows=rows, save=False)
        _, result = self.run(TRAIN, request, f"{len(candidates)} short runs of {steps} steps")
        for candidate, run in zip(candidates, result.runs, strict=True):
            self.count(candidate.rank, run, result)
        return {c: run.held_out for c, run in zip(candidates, result.runs, strict=True)}

    def adapter(self, candidate: Candidate) -> AdapterRef:
        """The adapter of a candidate as it is now."""
        run = self._latest[candidate]
        return AdapterRef(run.trial, f"run-{run.run}/adapter")

    # --- trials

    def train_request(
        self, runs: Sequence[RankRun], steps: int, until: int, *, rows: int, save: bool = True
    ) -> TrainRequest:
        """What a training trial is given; an unfinished run is measured with the mean of its pairs."""
        average = max(1, math.ceil(self._average * steps)) if until < steps else 0
        recompute = self.profile.estimate.recompute
        return TrainRequest(self.stamp, tuple(runs), steps, until, rows, save, recompute, average)

    def run(
        self, kind: TrialKind[Request, Result], request: Request, label: str
    ) -> tuple[str, Result]:
        """The key of one trial, and its result."""
        (outcome,) = self._outcomes([kind.trial(request, self._sources, label)])
        return outcome.trial.key, kind.result_of(outcome)

    def _outcomes(self, trials: Sequence[Trial]) -> list[Outcome]:
        self._report({"kind": "phase", "name": self.phase, "trials": len(trials)})
        return in_order(self._runner, trials)


def losses_of(run: RunLosses, label: str) -> RowLosses:
    """Held-out losses of a run.

    Raises:
        DivergedError: it has none.
    """
    if run.held_out is None:
        raise DivergedError(f"{label}: {run.diverged}")
    return run.held_out
