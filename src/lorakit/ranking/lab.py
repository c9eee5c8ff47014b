"""A `Lab` whose work is trials: what was done once is kept, and every FLOP is counted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorakit.errors import DivergedError
from lorakit.experiments import Outcome, Report, Runner, Trial, one
from lorakit.ranking.choose import Measured
from lorakit.ranking.look import LEAST_ROWS, early_rows, evaluation_flops, training_flops
from lorakit.ranking.search import Run

_TRAIN, _CUT, _NEST, _ASK = (
    f"lorakit.ranking.workers:{name}" for name in ("train", "cut", "nest", "ask")
)


@dataclass(frozen=True)
class Place:
    """Where an adapter lies: its trial, and its folder in it."""

    trial: str
    adapter: str


@dataclass(frozen=True)
class Short:
    """A short run of the probe or for the seed noise: None where it diverged."""

    measured: Measured | None
    steps: int

    @property
    def loss(self) -> float | None:
        """Nats per token on the held-out rows it was judged on."""
        return None if self.measured is None else self.measured.loss


class TrialLab:
    """Trains and measures by trials.

    Args:
        found: of the trial `look`.
        common: config and hashes, which every trial depends on.
        where: places.
        runner: does the trials.
        report: told of each phase.
        average: share of a run over whose last steps A and B are averaged for a measurement before
            its end.

    Attributes:
        ledger: FLOPs by what they were for.
        curves: training loss of each step of a run, as far as it has come.
        points: all measurements of runs, by step.
    """

    def __init__(
        self,
        found: Mapping[str, Any],
        common: Mapping[str, Any],
        where: Mapping[str, Any],
        runner: Runner,
        report: Report,
        average: float,
    ) -> None:
        self._average = average
        self._found, self._common, self._where = found, dict(common), where
        self._runner, self._report = runner, report
        self._at: dict[Run, tuple[Place, int]] = {}
        self._cuts: dict[tuple[Run, int], Place] = {}
        self._healed: dict[Run, Place] = {}
        self._nested: dict[int, Place] = {}
        self._alone: Place | None = None
        self.ledger: dict[str, float] = {}
        self.phase = "search"
        self.curves: dict[Run, list[float]] = {}
        self.points: dict[Run, dict[int, Measured]] = {}

    @property
    def steps(self) -> int:
        """Steps of a whole run."""
        return int(self._found["steps"])

    @property
    def whole(self) -> float:
        """FLOPs of training once at the highest rank."""
        highest = max(int(rank) for rank in self._found["trainable"])
        tokens = self.steps * self._found["tokens_per_step"]
        return training_flops(self._found, self.parameters(highest), tokens)

    @property
    def spent(self) -> float:
        """See `Lab`."""
        return sum(self.ledger.values()) / self.whole

    @property
    def measuring(self) -> float:
        """See `Lab`."""
        highest = max(int(rank) for rank in self._found["trainable"])
        tokens = self._found["eval_tokens"]
        return evaluation_flops(self._found, self.parameters(highest), tokens) / self.whole

    def parameters(self, rank: int) -> int:
        """Of an adapter of this rank."""
        smallest = min(self._found["trainable"], key=int)
        return int(self._found["trainable"][smallest]) // int(smallest) * rank

    # --- what a search asks for

    def train(self, runs: Sequence[Run], until: int) -> Mapping[Run, Measured]:
        """See `Lab`; runs that are there already are not trained again."""
        return self._train(runs, until, at_once=len(runs))

    def grid(self, runs: Sequence[Run], at_once: int = 1) -> Mapping[Run, Measured]:
        """Whole runs, so many on one base in a trial, as many trials at once as the runner allows."""
        return self._train(runs, self.steps, at_once=at_once)

    def cut(self, run: Run, ranks: Sequence[int]) -> Mapping[int, Measured]:
        """See `Lab`."""
        place, _ = self._at[run]
        spec = {"from": vars(place), "ranks": list(ranks), "rows": self._rows(self.steps)}
        outcome = self._one(_CUT, spec, f"cuts of rank {run.rank}")
        points = outcome.result["points"]
        for rank in ranks:
            self._cuts[run, rank] = Place(outcome.trial.key, f"rank-{rank}")
            self._count_evaluation(self.parameters(rank), outcome.result["judged_tokens"])
        return {rank: _measured(points[str(rank)], self.steps) for rank in ranks}

    def heal(self, run: Run, ranks: Sequence[int], steps: int) -> Mapping[int, Measured]:
        """See `Lab`."""
        starts = [self._cuts[run, rank] for rank in ranks]
        found = self._from_adapters(ranks, run.rate, run.seed, starts, steps, "healing")
        for rank, (place, _) in found.items():
            self._healed[Run(rank, run.rate, run.seed)] = place
        return {rank: point for rank, (_, point) in found.items()}

    def nest(self, ranks: Sequence[int], rate: float, seed: int) -> Mapping[int, Measured]:
        """See `Lab`."""
        spec = {"ranks": list(ranks), "rate": rate, "seed": seed, "steps": self.steps}
        spec |= {"rows": self._rows(self.steps), "recompute": self._found["recompute"]}
        outcome = self._one(_NEST, spec, f"all prefixes of rank {max(ranks)}")
        points = outcome.result["points"]
        # Rows are dealt out evenly, and so is what their pairs cost.
        mean = sum(self.parameters(rank) for rank in ranks) // len(ranks)
        self._count_training(mean, outcome.result["tokens"])
        for rank in ranks:
            self._nested[rank] = Place(outcome.trial.key, f"rank-{rank}")
            self._count_evaluation(self.parameters(rank), outcome.result["judged_tokens"])
        return {rank: _measured(points[str(rank)], self.steps) for rank in ranks}

    def go_on(self, rank: int, rate: float, seed: int, steps: int) -> Measured:
        """See `Lab`."""
        found = self._from_adapters(
            [rank], rate, seed, [self._nested[rank]], steps, "the chosen prefix alone"
        )
        self._alone, point = found[rank]
        return point

    # --- what the protocol asks for besides

    def short(self, runs: Sequence[Run], steps: int) -> dict[Run, Short]:
        """Runs with a whole schedule of so many steps, judged on some of the held-out rows."""
        if not runs:
            return {}
        spec = self._spec(runs, steps, steps, [{} for _ in runs])
        spec |= {"keep": False, "rows": min(LEAST_ROWS, int(self._found["eval_rows"]))}
        outcome = self._one(_TRAIN, spec, f"{len(runs)} short runs of {steps} steps")
        told = {}
        for run, each in zip(runs, outcome.result["runs"], strict=True):
            self._count(run, each, outcome.result["judged_tokens"])
            told[run] = Short(None if each["diverged"] else _measured(each, steps), steps)
        return told

    def ask(self, place: Place, rank: int, asking: Mapping[str, Any]) -> dict[str, Any]:
        """Scores of an adapter's answers to held-out prompts."""
        outcome = self._one(_ASK, {"from": vars(place), **asking}, f"answers of rank {rank}")
        tokens = outcome.result["tokens"] + self._found["eval_tokens"] * min(
            1.0, asking["samples"] / max(1, self._found["eval_rows"])
        )
        self._count_evaluation(self.parameters(rank), tokens)
        return outcome.result

    def count_look(self) -> None:
        """What the first trial measured of the base."""
        self._count_evaluation(0, self._found["base_tokens"] + self._found["prior_tokens"])

    def place(self, run: Run) -> Place:
        """The adapter of a run as it is now."""
        return self._at[run][0]

    def cut_place(self, run: Run, rank: int) -> Place:
        """The adapter of a run, cut to a rank."""
        return self._cuts[run, rank]

    def made(self, how: str, run: Run) -> Place:
        """The adapter that a search ended with."""
        if how == "trained":
            return self.place(run)
        if self._alone is not None:
            return self._alone
        return self._healed[run]

    # --- trials

    def _train(self, runs: Sequence[Run], until: int, *, at_once: int) -> dict[Run, Measured]:
        missing = [run for run in runs if until not in self.points.get(run, {})]
        trials: list[tuple[Sequence[Run], Trial]] = []
        for start in range(0, len(missing), max(1, at_once)):
            few = missing[start : start + at_once]
            sources: list[dict[str, Any]] = [
                {"from": {"trial": self._at[run][0].trial, "run": self._index(run)}}
                if run in self._at
                else {}
                for run in few
            ]
            spec = self._spec(few, self.steps, until, sources)
            named = ", ".join(f"rank {run.rank}" for run in few)
            trials.append((few, self._trial(_TRAIN, spec, f"{named} to step {until}")))
        if trials:
            self._report({"kind": "phase", "name": self.phase, "trials": len(trials)})
            done = {o.trial.key: o for o in self._runner([trial for _, trial in trials])}
            for group, trial in trials:
                self._note(group, done[trial.key], until)
        return {run: self.points[run][until] for run in runs}

    def _note(self, group: Sequence[Run], outcome: Outcome, until: int) -> None:
        for i, (run, told) in enumerate(zip(group, outcome.result["runs"], strict=True)):
            self._count(run, told, outcome.result["judged_tokens"])
            if told["diverged"]:
                raise DivergedError(f"rank {run.rank}: {told['diverged']}")
            self._at[run] = (Place(outcome.trial.key, f"run-{i}/adapter"), until)
            self.curves.setdefault(run, []).extend(told["train_losses"])
            self.points.setdefault(run, {})[until] = _measured(told, until)

    def _from_adapters(
        self,
        ranks: Sequence[int],
        rate: float,
        seed: int,
        starts: Sequence[Place],
        steps: int,
        label: str,
    ) -> dict[int, tuple[Place, Measured]]:
        runs = [Run(rank, rate, seed) for rank in ranks]
        spec = self._spec(runs, steps, steps, [{"start": vars(place)} for place in starts])
        spec |= {"rows": self._rows(self.steps)}
        outcome = self._one(_TRAIN, spec, f"{label}: ranks {', '.join(map(str, ranks))}")
        found = {}
        for i, (run, told) in enumerate(zip(runs, outcome.result["runs"], strict=True)):
            self._count(run, told, outcome.result["judged_tokens"])
            if told["diverged"]:
                raise DivergedError(f"{label}, rank {run.rank}: {told['diverged']}")
            place = Place(outcome.trial.key, f"run-{i}/adapter")
            found[run.rank] = (place, _measured(told, self.steps + steps))
        return found

    def _spec(
        self, runs: Sequence[Run], steps: int, until: int, sources: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        # Whole runs are the same trial whatever an unfinished one is measured with.
        rests = {"average": max(1, math.ceil(self._average * steps))} if until < steps else {}
        return rests | {
            "runs": [
                {
                    "rank": r.rank,
                    "rate": r.rate,
                    "seed": r.seed,
                    "pattern": dict(r.pattern),
                    **source,
                }
                for r, source in zip(runs, sources, strict=True)
            ],
            "steps": steps,
            "until": until,
            "keep": True,
            "rows": self._rows(until),
            "recompute": self._found["recompute"],
        }

    def _rows(self, until: int) -> int:
        """Held-out rows of a measurement: all at the end of a run, before it some."""
        rows = int(self._found["eval_rows"])
        return rows if until == self.steps else early_rows(rows)

    def _index(self, run: Run) -> int:
        return int(self._at[run][0].adapter.split("/")[0].removeprefix("run-"))

    def _trial(self, worker: str, spec: Mapping[str, Any], label: str) -> Trial:
        return Trial(worker, {**self._common, **spec}, self._where, label)

    def _one(self, worker: str, spec: Mapping[str, Any], label: str) -> Outcome:
        self._report({"kind": "phase", "name": self.phase, "trials": 1})
        return one(self._runner, self._trial(worker, spec, label))

    # --- costs

    def _count(self, run: Run, told: Mapping[str, Any], judged: int) -> None:
        parameters = self.parameters(run.rank)
        self._count_training(parameters, told["tokens"])
        if not told["diverged"]:
            self._count_evaluation(parameters, judged)

    def _count_training(self, parameters: int, tokens: float) -> None:
        self._add(training_flops(self._found, parameters, tokens))

    def _count_evaluation(self, parameters: int, tokens: float) -> None:
        self._add(evaluation_flops(self._found, parameters, tokens))

    def _add(self, flops: float) -> None:
        self.ledger[self.phase] = self.ledger.get(self.phase, 0.0) + flops


def _measured(told: Mapping[str, Any], step: int) -> Measured:
    if told["diverged"]:
        raise DivergedError(str(told["diverged"]))
    return Measured(np.array(told["rows"]), np.array(told["row_tokens"]), step)
