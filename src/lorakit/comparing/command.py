"""`lorakit compare`: rows -> a folder that holds the whole comparison and goes on after a kill.

RUN/
  config.yaml      every option; with --resume the comparison goes on from here
  trials/          one folder a trial, see lorakit.trials
  result.json      the figures
  samples.json     held-out prompts with the answers of the base and of every arm
  report.html      the page made of the two, and plots/*.png
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.comparing.methods import Arm, arms_of
from lorakit.comparing.protocol import Findings, Prospect, compare_arms, prospect
from lorakit.comparing.settings import Settings
from lorakit.comparing.summary import summarise
from lorakit.config import read_yaml
from lorakit.errors import InputError, OutputError
from lorakit.report import write_compare_report
from lorakit.run import folder as folders
from lorakit.trials import Report, Runner, processes

TRIALS = "trials"


def look_ahead(given: Settings, *, report: Report = lambda event: None) -> Prospect:
    """What the comparison would take; nothing but the look itself is run or kept.

    Raises:
        InputError: something given cannot be used.
    """
    with tempfile.TemporaryDirectory() as scratch:
        runner = processes(Path(scratch), report=report)
        return prospect(_arms(given), given.spec, given.config, runner)


def run_compare(
    given: Settings,
    *,
    command: str = "",
    report: Report = lambda event: None,
    runner: Callable[[Path, Report], Runner] | None = None,
    arms: Sequence[Arm] | None = None,
) -> dict[str, Any]:
    """Run what is missing of a comparison and write its result and page.

    Args:
        given: the settings.
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
    folder = Path(given.config.output.out)
    folders.check_folder(folder, resume=given.config.output.resume)
    if given.config.output.resume:
        _same_settings(folder, given)
        command = folders.command_of(folder) or command
    else:
        folders.make_folder(folder)
        folders.write_config(folder, _kept(given), command)
    made = runner or (lambda root, tell: processes(root, workers=given.spec.workers, report=tell))
    run = made(folder / TRIALS, report)
    chosen = tuple(arms) if arms is not None else _arms(given)
    report({"kind": "phase", "name": "look", "trials": 1})
    try:
        expected = prospect(chosen, given.spec, given.config, run)
    except InputError:
        _forget_if_empty(folder)
        raise
    report({"kind": "prospect", "prospect": expected, "arms": [arm.name for arm in chosen]})
    findings = compare_arms(chosen, given.spec, given.config, run, expected, report=report)
    result = summarise(findings, given.spec, given.config, command)
    folders.write_json(folder / folders.SAMPLES, samples(findings))
    folders.write_json(folder / folders.RESULT, result)
    write_compare_report(folder)
    return result


def samples(findings: Findings) -> list[dict[str, Any]]:
    """Every prompt with its reference, and the answers of the base and of each arm's first seed."""
    base = findings.base
    told = [("base", base)] + [(a.arm.name, a.runs[0].result) for a in findings.arms]
    return [
        {
            "prompt": prompt,
            "reference": reference,
            "answers": [
                {"who": who, "text": made["answers"][i], "score": _score(made, i)}
                for who, made in told
            ],
        }
        for i, (prompt, reference) in enumerate(
            zip(base["prompts"], base["references"], strict=True)
        )
    ]


def _score(made: Mapping[str, Any], row: int) -> float | None:
    if made["scores"] is None:
        return None
    first = made["scores"]["metrics"][0]
    return None if first["rows"] is None else float(first["rows"][row])


def _forget_if_empty(folder: Path) -> None:
    """Remove a folder in which nothing was done, so that the mended command can use it."""
    if not any((folder / TRIALS).glob("*/result.json")):
        for name in (folders.CONFIG, TRIALS):
            place = folder / name
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def _arms(given: Settings) -> tuple[Arm, ...]:
    return arms_of(given.spec, given.config.lora)


def _kept(given: Settings) -> dict[str, Any]:
    """The settings without what says only how the command was run."""
    return {name: value for name, value in given.to_flat().items() if name not in ("resume",)}


def _same_settings(folder: Path, given: Settings) -> None:
    """Refuse to go on with other settings: the folder would hold two comparisons in one."""
    before, now = dict(read_yaml(folder / folders.CONFIG)), _kept(given)
    for name in ("out", "workers"):
        before.pop(name, None)
        now.pop(name, None)
    changed = [n for n in now if json.dumps(before.get(n)) != json.dumps(now[n])]
    if changed:
        raise OutputError(
            f"{folder} holds a comparison with other settings ({', '.join(changed)}): leave them "
            "out to go on with it, or give another --out"
        )
