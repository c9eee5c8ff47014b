"""What a comparison will take, before it starts: steps of every arm, trials, seconds, memory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorakit.comparing.methods import Arm
from lorakit.comparing.spec import Budget, CompareSpec
from lorakit.comparing.trials import PROFILE, CompareProfile, CompareProfileRequest
from lorakit.config import RunConfig
from lorakit.experiments import Runner
from lorakit.experiments.profile import Profile
from lorakit.experiments.rates import rounds
from lorakit.experiments.stamps import Sources, Stamp, stamp_of
from lorakit.lora import LoraSpec

# From a process's first instruction to its first step, about: imports, model, rows.
_START_SECONDS = 8.0
# Of one evaluation beside the forward passes over the held-out rows: the general rows.
_GENERAL_SECONDS = 10.0
_OPTIONS_OF_ARMS = (
    *("learning_rate", "epochs", "max_steps"),
    *LoraSpec.__dataclass_fields__,
)


@dataclass(frozen=True)
class CompareEstimate:
    """What a comparison will take.

    Attributes:
        profile: rows, base, and a step of every arm.
        steps: of a run of each arm.
        trials: processes in all.
        seconds: in all, about.
        peak_memory_bytes: of the largest process.
        margins: within which two arms will count as equal, by what they are of.
        seeds: how often each arm is trained.
    """

    profile: CompareProfile
    steps: tuple[int, ...]
    trials: int
    seconds: float
    peak_memory_bytes: int
    margins: Mapping[str, float]
    seeds: int


def sources_of(spec: CompareSpec, config: RunConfig) -> Sources:
    """Where the rows and the base of a comparison lie."""
    return Sources.of(config, spec.general_data)


def first_stamp(spec: CompareSpec, config: RunConfig) -> Stamp:
    """What all trials depend on, without the options that belong to an arm."""
    return stamp_of(config, sources_of(spec, config), without=_OPTIONS_OF_ARMS)


def estimate_compare(
    arms: Sequence[Arm], spec: CompareSpec, config: RunConfig, runner: Runner
) -> CompareEstimate:
    """Profile rows and base in a trial, and estimate the whole from it."""
    request = CompareProfileRequest(first_stamp(spec, config), tuple(arm.method for arm in arms))
    profile = PROFILE.run(runner, request, sources_of(spec, config), "profile")
    steps = tuple(
        steps_of(
            spec.parsed_budget(), profile.profile, each.seconds_per_step, config.train.batch_size
        )
        for each in profile.estimates
    )
    seconds, trials = 15.0 + _START_SECONDS, 2
    per_token = profile.seconds_per_eval_token
    evaluation = profile.profile.eval_tokens * per_token + _GENERAL_SECONDS
    for count, estimate in zip(steps, profile.estimates, strict=True):
        plan = rounds(spec.rates, spec.probe_share, count)
        probe_steps = sum(each.rates * each.steps for each in plan)
        probes = sum(each.rates for each in plan)
        seconds += (probe_steps + spec.seeds * count) * estimate.seconds_per_step
        seconds += probes * (profile.validation_tokens * per_token + _START_SECONDS)
        seconds += spec.seeds * (spec.evaluations * evaluation + _START_SECONDS)
        trials += probes + spec.seeds
    peak = max(estimate.peak_memory_bytes for estimate in profile.estimates)
    seconds /= spec.workers
    return CompareEstimate(profile, steps, trials, seconds, peak, spec.margins, spec.seeds)


def steps_of(budget: Budget, profile: Profile, seconds_per_step: float, batch_size: int) -> int:
    """Optimizer steps that a budget allows, at least one.

    Args:
        budget: what is allowed.
        profile: rows, and mean tokens of a step.
        seconds_per_step: of the arm, where the budget is time.
        batch_size: rows of a step.
    """
    match budget.unit:
        case "steps":
            steps = budget.amount
        case "tokens":
            steps = budget.amount / profile.tokens_per_step
        case "minutes":
            steps = budget.amount * 60 / seconds_per_step
        case "epochs":
            steps = math.ceil(budget.amount * math.ceil(profile.rows / batch_size))
    return max(1, int(steps))
