"""The protocol, from top to bottom: what is run, in which order, and with what in common.

    look    rows, base, what each arm will need                            one trial
    base    its held-out loss, its answers, the general rows               one trial
    probe   each arm's learning rate, on tuning rows, at equal budget      rounds of trials
    run     every arm with every seed, measured on the held-out rows       arms x seeds trials

Nothing here depends on an arm's name, nor on the order of the arms but that of the output.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lorakit.comparing.methods import Arm
from lorakit.comparing.spec import Budget, CompareSpec
from lorakit.config import OutputSpec, RunConfig
from lorakit.experiments import Outcome, Report, Runner, Trial, one
from lorakit.experiments.rates import grid, rounds, survivors

_LOOK, _BASE = (f"lorakit.comparing.base_trials:{name}" for name in ("look", "base"))
_PROBE, _RUN = (f"lorakit.comparing.arm_trials:{name}" for name in ("probe", "run"))

# Longest of the base's own answers to the general prompts, in tokens.
GENERAL_TOKENS = 64
SOFTWARE = ("lorakit", "torch", "transformers")


@dataclass(frozen=True)
class ProbeRun:
    """One rate of one round: its loss on the tuning rows, None where it diverged."""

    round: int
    steps: int
    rate: float
    loss: float | None
    measured: Mapping[str, Any]


@dataclass(frozen=True)
class ArmFindings:
    """An arm, measured.

    Attributes:
        arm: its name and method.
        steps: optimizer steps of each run.
        rate: the learning rate that its probe chose.
        probe: what it chose from.
        runs: outcome of each seed, in their order.
        forecast: what was expected of a step.
    """

    arm: Arm
    steps: int
    rate: float
    probe: tuple[ProbeRun, ...]
    runs: tuple[Outcome, ...]
    forecast: Mapping[str, Any]


@dataclass(frozen=True)
class Findings:
    """All that was measured."""

    seeds: tuple[int, ...]
    look: Mapping[str, Any]
    base: Mapping[str, Any]
    arms: tuple[ArmFindings, ...]


@dataclass(frozen=True)
class Prospect:
    """What a comparison will take, before it starts.

    Attributes:
        look: rows and forecasts.
        steps: of a run of each arm.
        trials: processes in all.
        seconds: in all, about.
        peak_memory_bytes: of the largest process.
    """

    look: Mapping[str, Any]
    steps: tuple[int, ...]
    trials: int
    seconds: float
    peak_memory_bytes: int


def prospect(arms: Sequence[Arm], spec: CompareSpec, config: RunConfig, runner: Runner) -> Prospect:
    """Look at rows and base, and forecast the whole."""
    methods = [arm.method.to_dict() for arm in arms]
    # Files are known by their size and time here; what is in them comes out of the trial.
    stamps = [_stamp(name) for name in _sources(config, spec)]
    asked = {"config": _options(config), "methods": methods, "files": stamps}
    found = one(runner, Trial(_LOOK, asked, _where(config, spec), "look")).result
    steps = tuple(
        steps_of(spec.parsed_budget(), found, each, config.train.batch_size)
        for each in (forecast["seconds_per_step"] for forecast in found["forecasts"])
    )
    seconds, trials = 15.0 + _START_SECONDS, 2
    per_token = found["seconds_per_eval_token"]
    evaluation = found["eval_tokens"] * per_token + 10.0
    for count, forecast in zip(steps, found["forecasts"], strict=True):
        planned = rounds(spec.rates, spec.probe_share, count)
        tried = sum(each.rates * each.steps for each in planned)
        probes = sum(each.rates for each in planned)
        seconds += (tried + spec.seeds * count) * forecast["seconds_per_step"]
        seconds += probes * (found["tuning_tokens"] * per_token + _START_SECONDS)
        seconds += spec.seeds * (spec.evaluations * evaluation + _START_SECONDS)
        trials += probes + spec.seeds
    peak = max(forecast["peak_memory_bytes"] for forecast in found["forecasts"])
    return Prospect(found, steps, trials, seconds / spec.workers, peak)


# From a process's first instruction to its first step, about: imports, model, rows.
_START_SECONDS = 8.0


def compare_arms(
    arms: Sequence[Arm],
    spec: CompareSpec,
    config: RunConfig,
    runner: Runner,
    expected: Prospect,
    *,
    report: Report = lambda event: None,
) -> Findings:
    """Run what is missing of the whole protocol.

    Args:
        arms: at least two.
        spec, config: the settings.
        runner: does the trials; what was kept is not done again.
        expected: of `prospect`.
        report: told of the stages and of the rates that were chosen.

    Raises:
        DivergedError: every rate of an arm's probe diverged, or a run at the chosen one did.
        InputError, TrialError: see `lorakit.experiments`.
    """
    found, where = expected.look, _where(config, spec)
    common = {
        "config": _options(config),
        "data_sha256": found["data_sha256"],
        "base": found["base"],
        "software": {name: found["versions"][name] for name in SOFTWARE},
    }
    asking = {"samples": config.output.samples, "max_new_tokens": config.output.max_new_tokens}
    general = {"general_sha256": found["general_sha256"], "general_tokens": GENERAL_TOKENS}

    report({"kind": "phase", "name": "base", "trials": 1})
    base = one(runner, Trial(_BASE, common | asking | general, where, "base"))

    steps = list(expected.steps)
    recompute = [forecast["recompute"] for forecast in found["forecasts"]]
    probes = _probe(arms, steps, recompute, spec, found, runner, report, common, where)
    chosen = [_chosen(runs, _rate_by_rule(found, i, steps[i])) for i, runs in enumerate(probes)]
    if spec.parsed_budget().unit == "minutes":
        steps = [
            steps_of(spec.parsed_budget(), found, _pace(runs) or forecast["seconds_per_step"], 1)
            for runs, forecast in zip(probes, found["forecasts"], strict=True)
        ]

    before = {
        "loss": base.result["loss"],
        "kl": base.result["general"]["kl"],
        "general_loss": base.result["general"]["loss"],
    }
    seeds = tuple(config.train.seed + i for i in range(spec.seeds))
    ours = common | asking | {"base_trial": base.trial.key, "before": before}
    ours |= {"evaluations": spec.evaluations}
    runs = {
        (i, seed): Trial(
            _RUN,
            ours
            | {"method": arm.method.to_dict(), "rate": chosen[i], "steps": steps[i]}
            | {"recompute": recompute[i], "seed": seed},
            where,
            f"{arm.name}, seed {seed}",
        )
        for seed in seeds  # seed by seed, so that a kill leaves whole pairs
        for i, arm in enumerate(arms)
    }
    report({"kind": "phase", "name": "run", "trials": len(runs)})
    done = {outcome.trial.key: outcome for outcome in runner(list(runs.values()))}
    return Findings(
        seeds=seeds,
        look=found,
        base=base.result,
        arms=tuple(
            ArmFindings(
                arm,
                steps[i],
                chosen[i],
                probes[i],
                tuple(done[runs[i, seed].key] for seed in seeds),
                found["forecasts"][i],
            )
            for i, arm in enumerate(arms)
        ),
    )


def _probe(
    arms: Sequence[Arm],
    steps: Sequence[int],
    recompute: Sequence[bool],
    spec: CompareSpec,
    found: Mapping[str, Any],
    runner: Runner,
    report: Report,
    common: Mapping[str, Any],
    where: Mapping[str, Any],
) -> list[tuple[ProbeRun, ...]]:
    """Every arm's probe, round by round, all arms of a round together."""
    plans = [rounds(spec.rates, spec.probe_share, count) for count in steps]
    left = [
        grid(_rate_by_rule(found, i, steps[i]), spec.rates, spec.rate_factor)
        for i in range(len(arms))
    ]
    tried: list[list[ProbeRun]] = [[] for _ in arms]
    for number in range(len(plans[0])):
        trials = {
            (i, rate): Trial(
                _PROBE,
                {**common, "method": arm.method.to_dict(), "rate": rate}
                | {"steps": plans[i][number].steps, "recompute": recompute[i]},
                where,
                f"probe of {arm.name}, rate {rate:g}",
            )
            for i, arm in enumerate(arms)
            for rate in left[i]
        }
        report({"kind": "phase", "name": f"probe {number + 1}", "trials": len(trials)})
        done = {outcome.trial.key: outcome.result for outcome in runner(list(trials.values()))}
        for i in range(len(arms)):
            results = {rate: done[trials[i, rate].key] for rate in left[i]}
            tried[i] += [
                ProbeRun(number + 1, plans[i][number].steps, rate, r["loss"], r["measured"])
                for rate, r in results.items()
            ]
            more = plans[i][number + 1].rates if number + 1 < len(plans[i]) else 1
            left[i] = survivors({rate: r["loss"] for rate, r in results.items()}, more)
    return [tuple(each) for each in tried]


def _chosen(runs: Sequence[ProbeRun], by_rule: float) -> float:
    """The best rate of the last round; without a probe the rule's."""
    if not runs:
        return by_rule
    last = max(each.round for each in runs)
    (rate,) = survivors({each.rate: each.loss for each in runs if each.round == last}, 1)
    return rate


def _rate_by_rule(found: Mapping[str, Any], arm: int, steps: int) -> float:
    rule = found["forecasts"][arm]["rate_by_rule"]
    return float(rule["short" if steps < 100 else "long"])


def _pace(runs: Sequence[ProbeRun]) -> float | None:
    """Seconds of a step as the longest round measured it."""
    timed = [r for r in runs if r.measured["seconds_per_step"] is not None]
    if not timed:
        return None
    return float(max(timed, key=lambda r: r.steps).measured["seconds_per_step"])


def steps_of(
    budget: Budget, found: Mapping[str, Any], seconds_per_step: float, batch_size: int
) -> int:
    """Optimizer steps that a budget allows, at least one.

    Args:
        budget: what is allowed.
        found: of the trial `look`: rows and mean tokens of a step.
        seconds_per_step: of the arm, where the budget is time.
        batch_size: rows of a step.
    """
    match budget.unit:
        case "steps":
            steps = budget.amount
        case "tokens":
            steps = budget.amount / found["tokens_per_step"]
        case "minutes":
            steps = budget.amount * 60 / seconds_per_step
        case "epochs":
            steps = math.ceil(budget.amount * math.ceil(found["rows"] / batch_size))
    return max(1, int(steps))


def _where(config: RunConfig, spec: CompareSpec) -> dict[str, Any]:
    data = config.data
    return {
        "model": config.model.model,
        "data": list(data.data),
        "eval_data": list(data.eval_data),
        "general_data": list(spec.general_data),
    }


def _options(config: RunConfig) -> dict[str, Any]:
    """Options that every trial shares: not the places, nor what belongs to an arm or to output."""
    flat = config.to_flat()
    for name in (*_where(config, CompareSpec()), "from", "keep", "eval_every", "patience"):
        flat.pop(name, None)
    for name in ("learning_rate", "epochs", "max_steps", "checkpoint_every"):
        flat.pop(name)
    for each in fields(OutputSpec):
        flat.pop(each.name)
    for each in fields(type(config.lora)):
        flat.pop(each.name)
    return flat


def _sources(config: RunConfig, spec: CompareSpec) -> list[str]:
    return [config.model.model, *config.data.data, *config.data.eval_data, *spec.general_data]


def _stamp(name: str) -> list[Any]:
    """Name, sizes and times of the files that a source names; the name alone where it is no path."""
    path = Path(name)
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    held = [(str(f), f.stat()) for f in files if f.is_file()]
    return [name, *([file, stat.st_size, stat.st_mtime_ns] for file, stat in held)]
