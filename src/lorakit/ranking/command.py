"""`lorakit rank`: rows -> a folder with the recommended rank, its trained adapter, and the evidence.

RUN/
  config.yaml      every option; with --resume the search goes on from here
  trials/          one folder a trial, see lorakit.experiments
  adapter/         trained, at the recommended rank
  result.json      the figures
  report.html      the page made of them, and plots/*.png
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorakit.adapters.pairs import read_stored, write_stored
from lorakit.errors import InputError
from lorakit.experiments import Report, Runner, processes
from lorakit.experiments.experiment import TRIALS, enter, forget_if_empty
from lorakit.files.whole import write_json
from lorakit.ranking.protocol import RankFindings, profile_rank, search_rank
from lorakit.ranking.settings import RankSettings
from lorakit.ranking.summary import summarise
from lorakit.report import write_rank_report
from lorakit.run import folder as folders

# What may be asked for later of a search that is there: its trials stay what they are.
_LATER = (
    "verify",
    "exhaustive",
    "per_layer",
    "metric",
    "grid_rates",
    "grid_seeds",
)


def run_rank(
    settings: RankSettings,
    *,
    command: str = "",
    report: Report = lambda event: None,
    runner: Callable[[Path, Report], Runner] | None = None,
) -> dict[str, Any]:
    """Run what is missing of a search, and write its adapter, result and page.

    Args:
        settings: the settings.
        command: how to repeat it, for the page.
        report: told of phases, trials and decisions, as flat mappings with a "kind".
        runner: makes what does the trials, given their folder; a process each by default.

    Returns:
        What result.json holds.

    Raises:
        InputError: something given cannot be used.
        DivergedError, TrialError: see `search_rank`; finished trials are kept.
    """
    folder = Path(settings.config.output.out)
    command = enter(folder, settings.to_flat(), command, what="a search", later=_LATER)
    root = folder / TRIALS
    if runner is None:
        run = processes(root, workers=settings.spec.workers, report=report)
    else:
        run = runner(root, report)
    report({"kind": "phase", "name": "profile", "trials": 1})
    try:
        profile = profile_rank(settings.spec, settings.config, run)
    except InputError:
        forget_if_empty(folder)
        raise
    report({"kind": "profile", "profile": profile})
    findings = search_rank(settings.spec, settings.config, run, root, profile, report=report)
    result = summarise(findings, settings.spec, command, root)
    _keep_adapter(findings, settings, result, root, folder / "adapter")
    write_json(folder / folders.RESULT, result)
    write_rank_report(folder)
    return result


def _keep_adapter(
    findings: RankFindings,
    settings: RankSettings,
    result: Mapping[str, Any],
    root: Path,
    folder: Path,
) -> None:
    """The adapter of the answer, with the search in its record."""
    stored = read_stored(root / findings.adapter.trial / findings.adapter.adapter)
    profile = findings.profile.profile
    provenance = {
        "template": dict(profile.template),
        "data_sha256": profile.data_sha256,
        "config": {n: v for n, v in settings.to_flat().items() if n not in ("out", "resume")},
        "versions": dict(profile.versions),
        "metrics": {"eval_loss": result["loss"], "eval_loss_before": result["base_loss"]},
        "rank_search": {
            "rank": findings.rank,
            "kind": findings.choice.kind,
            "method": settings.spec.method,
            "confidence": findings.choice.confidence,
            "tolerance": findings.tolerance.share,
        },
    }
    write_stored(folder, stored, provenance=provenance, overwrite=True)
