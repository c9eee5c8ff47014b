"""`lorakit compare`: rows -> a folder that holds the whole comparison and goes on after a kill.

RUN/
  config.yaml      every option; with --resume the comparison goes on from here
  trials/          one folder a trial, see lorakit.experiments
  result.json      the figures
  samples.json     held-out prompts with the answers of the base and of every arm
  report.html      the page made of the two, and plots/*.png
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorakit.comparing.methods import Arm, arms_of
from lorakit.comparing.planning import CompareEstimate, estimate_compare
from lorakit.comparing.protocol import CompareFindings, compare_arms
from lorakit.comparing.spec import CompareSettings
from lorakit.comparing.summary import summarise
from lorakit.comparing.trials import BaseResult, RunResult
from lorakit.config import RunConfig
from lorakit.errors import ConfigError
from lorakit.evaluation.metrics import Scores
from lorakit.experiments import Report, processes
from lorakit.experiments.experiment import MakeRunner, begin_experiment
from lorakit.files.whole import write_json
from lorakit.models.kept_packed import stays_packed
from lorakit.models.spec import FULL
from lorakit.report import write_compare_report
from lorakit.run.folder import RESULT, SAMPLES


def estimate_only(
    settings: CompareSettings, *, report: Report = lambda event: None
) -> CompareEstimate:
    """What the comparison would take; nothing but the profile is run, and nothing is kept.

    Raises:
        InputError: something given cannot be used.
    """
    _refuse_quantized(settings)
    with tempfile.TemporaryDirectory() as scratch:
        runner = processes(Path(scratch), report=report)
        return estimate_compare(_arms(settings), settings.spec, _unpacked(settings), runner)


def run_compare(
    settings: CompareSettings,
    *,
    command: str = "",
    report: Report = lambda event: None,
    runner: MakeRunner | None = None,
    arms: Sequence[Arm] | None = None,
) -> dict[str, Any]:
    """Run what is missing of a comparison and write its result and page.

    Args:
        settings: the settings.
        command: how to repeat it, for the page.
        report: told of phases and trials, as flat mappings with a "kind".
        runner: makes what does the trials, given their folder; a process each by default.
        arms: in place of full fine-tuning and one LoRA arm a rank.

    Returns:
        What result.json holds.

    Raises:
        InputError: something given cannot be used.
        DivergedError, TrialError: see `compare_arms`; finished trials are kept.
    """
    if arms is None:
        _refuse_quantized(settings)
    experiment = begin_experiment(settings, command, report, runner, what="a comparison")
    folder, run = experiment.folder, experiment.runner
    chosen = tuple(arms) if arms is not None else _arms(settings)
    config = settings.config if arms is not None else _unpacked(settings)
    with experiment.profiling():
        estimate = estimate_compare(chosen, settings.spec, config, run)
    report({"kind": "estimate", "estimate": estimate, "arms": [arm.name for arm in chosen]})
    findings = compare_arms(chosen, settings.spec, config, run, estimate, report=report)
    result = summarise(findings, settings.spec, config, experiment.command)
    write_json(folder / SAMPLES, samples(findings))
    write_json(folder / RESULT, result)
    write_compare_report(folder)
    return result


def samples(findings: CompareFindings) -> list[dict[str, Any]]:
    """Every prompt with its reference, and the answers of the base and of each arm's first seed."""
    base = findings.base
    answered: list[tuple[str, BaseResult | RunResult]] = [("base", base)]
    answered += [(a.arm.name, a.runs[0].result) for a in findings.arms]
    return [
        {
            "prompt": prompt,
            "reference": reference,
            "answers": [
                {"who": who, "text": result.answers[i], "score": _score(result.scores, i)}
                for who, result in answered
            ],
        }
        for i, (prompt, reference) in enumerate(zip(base.prompts, base.references, strict=True))
    ]


def _score(scores: Scores | None, row: int) -> float | None:
    """This row's value of the first metric, where it has one for single rows."""
    rows = scores.metrics[0].rows if scores is not None else None
    return None if rows is None else rows[row]


def _arms(settings: CompareSettings) -> tuple[Arm, ...]:
    return arms_of(settings.spec, settings.config.lora, settings.config.model.base_dtype)


def _unpacked(settings: CompareSettings) -> RunConfig:
    """The options of every trial, base in full precision: how an arm holds it is said by its method."""
    config = settings.config
    return replace(config, model=replace(config.model, base_dtype=FULL))


def _refuse_quantized(settings: CompareSettings) -> None:
    """Full fine-tuning needs every weight in full precision.

    Raises:
        ConfigError: the model is quantized as it lies in its folder.
    """
    if stays_packed(settings.config.model):
        raise ConfigError(
            f"{settings.config.model.model} is quantized, and a comparison has an arm that trains every "
            "weight: name the unquantized model; `lorakit train` and `lorakit rank` take this one"
        )
