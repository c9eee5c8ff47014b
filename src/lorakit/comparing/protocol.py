"""The protocol, from top to bottom: what is run, in which order, and with what in common.

    profile   rows, base, what each arm will need                            one trial
    base      its held-out loss, its answers, the general rows               one trial
    probe     each arm's learning rate, on validation rows, at equal budget  rounds of trials
    run       every arm with every seed, measured on the held-out rows       arms x seeds trials

Nothing here depends on an arm's name, nor on the order of the arms but that of the output.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorakit.comparing.methods import Arm
from lorakit.comparing.planning import CompareEstimate, first_stamp, sources_of, steps_of
from lorakit.comparing.spec import CompareSpec
from lorakit.comparing.trials import (
    BASE,
    PROBE,
    RUN,
    Asking,
    BaseRequest,
    BaseResult,
    CompareProfile,
    CoursePoint,
    ProbeRequest,
    RunRequest,
    RunResult,
    Training,
)
from lorakit.config import RunConfig
from lorakit.experiments import Report, Runner, in_order
from lorakit.experiments.measuring import Pace
from lorakit.experiments.profile import StepEstimate
from lorakit.experiments.rates import ProbePoint, RateProbe, rounds
from lorakit.experiments.stamps import Sources, Stamp

# Longest of the base's own answers to the general prompts, in tokens.
GENERAL_TOKENS = 64


@dataclass(frozen=True)
class ArmRun:
    """An arm trained with one seed: its trial's folder among the trials, and what it measured."""

    trial: str
    result: RunResult


@dataclass(frozen=True)
class ArmFindings:
    """An arm, measured.

    Attributes:
        arm: its name and method.
        steps: optimizer steps of each run.
        rate: the learning rate that its probe chose.
        probe: what it chose from; `paces` how fast each of these runs was.
        runs: of each seed, in their order.
        estimate: what was expected of a step.
    """

    arm: Arm
    steps: int
    rate: float
    probe: tuple[ProbePoint, ...]
    paces: tuple[Pace, ...]
    runs: tuple[ArmRun, ...]
    estimate: StepEstimate


@dataclass(frozen=True)
class CompareFindings:
    """All that was measured."""

    seeds: tuple[int, ...]
    profile: CompareProfile
    base: BaseResult
    arms: tuple[ArmFindings, ...]


@dataclass
class _ArmPlan:
    """An arm on its way through the protocol."""

    arm: Arm
    estimate: StepEstimate
    steps: int
    probe: RateProbe
    paces: list[tuple[int, Pace]]

    def training(self, rate: float, steps: int) -> Training:
        return Training(self.arm.method, rate, steps, self.estimate.recompute)

    @property
    def seconds_per_step(self) -> float:
        """As the longest round of the probe measured it; without a probe as it was estimated."""
        timed = [(n, p.seconds_per_step) for n, p in self.paces if p.seconds_per_step is not None]
        longest = max(timed, key=lambda each: each[0], default=(0, None))[1]
        return longest or self.estimate.seconds_per_step


def compare_arms(
    arms: Sequence[Arm],
    spec: CompareSpec,
    config: RunConfig,
    runner: Runner,
    estimate: CompareEstimate,
    *,
    report: Report = lambda event: None,
) -> CompareFindings:
    """Run what is missing of the whole protocol.

    Args:
        arms: at least two.
        spec, config: the settings.
        runner: does the trials; what was kept is not done again.
        estimate: of `estimate_compare`.
        report: told of the phases.

    Raises:
        DivergedError: every rate of an arm's probe diverged, or a run at the chosen one did.
        InputError, TrialError: see `lorakit.experiments`.
    """
    profile, sources = estimate.profile, sources_of(spec, config)
    stamp = first_stamp(spec, config).of_contents(
        profile.profile.data_sha256, profile.profile.base_sha256
    )
    asking = Asking(config.output.samples, config.output.answer_limit)
    report({"kind": "phase", "name": "base", "trials": 1})
    base_trial = BASE.trial(
        BaseRequest(stamp, asking, profile.general_sha256, GENERAL_TOKENS), sources, "base"
    )
    base = BASE.result_of(*in_order(runner, [base_trial]))

    plans = _plans(arms, spec, estimate)
    _probe(plans, stamp, sources, runner, report)
    if spec.parsed_budget().unit == "minutes":
        for plan in plans:
            pace = plan.seconds_per_step
            plan.steps = steps_of(spec.parsed_budget(), profile.profile, pace, 1)

    first_seed = config.train.seed
    seeds = tuple(first_seed + i for i in range(spec.seeds))
    before = CoursePoint(0, 0, base.held_out.loss, base.general.kl, base.general.loss)
    common = RunRequest(
        stamp=stamp,
        training=plans[0].training(0.0, 0),
        asking=asking,
        seed=first_seed,
        base_trial=base_trial.key,
        before=before,
        evaluations=spec.evaluations,
    )
    runs = _run(plans, seeds, common, sources, runner, report)
    measured = tuple(
        ArmFindings(
            plan.arm,
            plan.steps,
            plan.probe.rate,
            tuple(plan.probe.points),
            tuple(pace for _, pace in plan.paces),
            runs[i],
            plan.estimate,
        )
        for i, plan in enumerate(plans)
    )
    return CompareFindings(seeds, profile, base, measured)


def _plans(arms: Sequence[Arm], spec: CompareSpec, estimate: CompareEstimate) -> list[_ArmPlan]:
    """Every arm with its probe, which begins around the rule's rate for its steps."""
    rule = estimate.profile.profile.rate_rule
    plans = []
    for arm, steps, each in zip(arms, estimate.steps, estimate.profile.estimates, strict=True):
        centre = rule.rate(steps, full=arm.method.kind == "full")
        plan = rounds(spec.rates, spec.probe_share, steps)
        plans.append(_ArmPlan(arm, each, steps, RateProbe(centre, plan, spec.rate_factor), []))
    return plans


def _probe(
    plans: Sequence[_ArmPlan], stamp: Stamp, sources: Sources, runner: Runner, report: Report
) -> None:
    """Every arm's probe, round by round, all arms of a round together."""
    number = 0
    while (next_rounds := [plan.probe.round for plan in plans])[0] is not None:
        number += 1
        trials = {
            (i, rate): PROBE.trial(
                ProbeRequest(stamp, plan.training(rate, each.steps)),
                sources,
                f"probe of {plan.arm.name}, rate {rate:g}",
            )
            for i, (plan, each) in enumerate(zip(plans, next_rounds, strict=True))
            if each is not None
            for rate in plan.probe.rates
        }
        report({"kind": "phase", "name": f"probe {number}", "trials": len(trials)})
        outcomes = in_order(runner, list(trials.values()))
        results = {at: PROBE.result_of(each) for at, each in zip(trials, outcomes, strict=True)}
        for i, (plan, each) in enumerate(zip(plans, next_rounds, strict=True)):
            assert each is not None  # all arms have as many rounds
            ours = {rate: results[i, rate] for rate in plan.probe.rates}
            plan.paces += [(each.steps, result.measured) for result in ours.values()]
            plan.probe.note({rate: result.loss for rate, result in ours.items()})


def _run(
    plans: Sequence[_ArmPlan],
    seeds: Sequence[int],
    common: RunRequest,
    sources: Sources,
    runner: Runner,
    report: Report,
) -> list[tuple[ArmRun, ...]]:
    """Every arm with every seed; for each arm its runs in the order of the seeds."""
    trials = {
        (i, seed): RUN.trial(
            replace(common, training=plan.training(plan.probe.rate, plan.steps), seed=seed),
            sources,
            f"{plan.arm.name}, seed {seed}",
        )
        for seed in seeds  # seed by seed, so that a kill leaves whole pairs
        for i, plan in enumerate(plans)
    }
    report({"kind": "phase", "name": "run", "trials": len(trials)})
    outcomes = in_order(runner, list(trials.values()))
    runs = {
        at: ArmRun(outcome.trial.key, RUN.result_of(outcome))
        for at, outcome in zip(trials, outcomes, strict=True)
    }
    return [tuple(runs[i, seed] for seed in seeds) for i in range(len(plans))]
