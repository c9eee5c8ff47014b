"""`lorakit rank`: rows -> a folder with the recommended rank, its trained adapter, and the evidence.

RUN/
  config.yaml      every option; with --resume the search goes on from here
  trials/          one folder a trial, see lorakit.trials
  adapter/         trained, at the recommended rank
  result.json      the figures
  report.html      the page made of them, and plots/*.png
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorakit.adapters.pairs import read_stored, write_stored
from lorakit.config import read_yaml
from lorakit.errors import InputError, OutputError
from lorakit.ranking.protocol import Findings, look_at, search_rank
from lorakit.ranking.settings import Settings
from lorakit.ranking.summary import summarise
from lorakit.report import write_rank_report
from lorakit.run import folder as folders
from lorakit.trials import Report, Runner, processes

TRIALS = "trials"


def run_rank(
    given: Settings,
    *,
    command: str = "",
    report: Report = lambda event: None,
    runner: Callable[[Path, Report], Runner] | None = None,
) -> dict[str, Any]:
    """Run what is missing of a search, and write its adapter, result and page.

    Args:
        given: the settings.
        command: how to repeat it, for the page.
        report: told of phases, trials and decisions, as flat mappings with a "kind".
        runner: makes what does the trials, given their folder; a process each by default.

    Returns:
        What result.json holds.

    Raises:
        InputError: something given cannot be used.
        DivergedError, TrialError: see `search_rank`; finished trials are kept.
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
    report({"kind": "phase", "name": "look", "trials": 1})
    try:
        look = look_at(given.spec, given.config, run)
    except InputError:
        _forget_if_empty(folder)
        raise
    report({"kind": "looked", "look": look})
    root = folder / TRIALS
    findings = search_rank(given.spec, given.config, run, root, look, report=report)
    result = summarise(findings, given.spec, command, root)
    _keep_adapter(findings, given, result, root, folder / "adapter")
    folders.write_json(folder / folders.RESULT, result)
    write_rank_report(folder)
    return result


def _keep_adapter(
    findings: Findings, given: Settings, result: Mapping[str, Any], root: Path, folder: Path
) -> None:
    """The adapter of the answer, with the search in its record."""
    stored = read_stored(root / findings.place.trial / findings.place.adapter)
    look = findings.look
    provenance = {
        "template": look["template"],
        "data_sha256": look["data_sha256"],
        "config": {name: value for name, value in _kept(given).items() if name != "out"},
        "versions": look["versions"],
        "metrics": {"eval_loss": result["loss"], "eval_loss_before": result["base_loss"]},
        "rank_search": {
            "rank": findings.rank,
            "kind": findings.choice.kind,
            "method": given.spec.method,
            "confidence": findings.choice.confidence,
            "tolerance": asdict(findings.tolerance)["share"],
        },
    }
    write_stored(folder, stored, provenance=provenance, overwrite=True)


def _forget_if_empty(folder: Path) -> None:
    """Remove a folder in which nothing was done, so that the mended command can use it."""
    if not any((folder / TRIALS).glob("*/result.json")):
        for name in (folders.CONFIG, TRIALS):
            place = folder / name
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def _kept(given: Settings) -> dict[str, Any]:
    """The settings without what says only how the command was run."""
    return {name: value for name, value in given.to_flat().items() if name != "resume"}


# What may be asked for later of a search that is there: its trials stay what they are.
_LATER = (
    "out",
    "workers",
    "verify",
    "exhaustive",
    "per_layer",
    "metric",
    "grid_rates",
    "grid_seeds",
)


def _same_settings(folder: Path, given: Settings) -> None:
    """Refuse to go on with other settings: the folder would hold two searches in one."""
    before, now = dict(read_yaml(folder / folders.CONFIG)), _kept(given)
    for name in _LATER:
        before.pop(name, None)
        now.pop(name, None)
    changed = [n for n in now if json.dumps(before.get(n)) != json.dumps(now[n])]
    if changed:
        raise OutputError(
            f"{folder} holds a search with other settings ({', '.join(changed)}): leave them out "
            "to go on with it, or give another --out"
        )
