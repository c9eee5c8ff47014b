"""A run's page: what its files say, arranged for a reader."""

import shlex
from pathlib import Path

from lorakit.extras import no_page
from lorakit.report import run_tables as tables
from lorakit.report.answers import sample
from lorakit.report.html import write_page
from lorakit.report.numbers import is_number
from lorakit.report.read import Record, RunFiles, read_run
from lorakit.report.run_figures import run_figures
from lorakit.report.wording import second_verdict, verdict
from lorakit.run.folder import repeating


def write_report(run_folder: str | Path) -> Path | None:
    """Write `report.html` and `plots/*.png` into a run's folder from its plain files.

    Reads result.json, metrics.jsonl, samples.json and config.yaml; a missing one leaves its
    sections out. The page stands alone: no network, no scripts. Returns its path, or None where
    `lorakit.extras.no_page` says why there is none.

    Raises:
        DataError: the folder holds no run, or one of its files is broken.
        OutputError: the page or a plot cannot be written.
    """
    if no_page() is not None:
        return None
    folder = Path(run_folder)
    run = read_run(folder)
    figures = run_figures(run, folder / "plots")
    result = run.result
    return write_page(
        folder / "report.html",
        "run.html.j2",
        name=run.name,
        title=_title(result, run.name),
        verdict=verdict(result),
        second_verdict=second_verdict(result),
        notes=[str(note) for note in result.get("notes") or ()],
        tiles=tables.tiles(result),
        figures=figures,
        evals=tables.evals(run),
        scores=tables.scores(result),
        samples=[sample(record) for record in run.samples],
        forecast=tables.forecast(result),
        facts=tables.facts(result),
        layers=tables.layers(result.get("layers") or ()),
        command=_command(result, run, folder),
        config=run.config.strip(),
        versions=tables.pairs(result.get("versions")),
        machine=tables.pairs(result.get("machine")),
    )


def _title(result: Record, name: str) -> str:
    model = result.get("model")
    if not model:
        return name
    rank = result.get("rank")
    return f"{model}, LoRA of rank {rank}" if is_number(rank) else str(model)


def _command(result: Record, run: RunFiles, folder: Path) -> str:
    command = result.get("command")
    if isinstance(command, list | tuple):
        return shlex.join(map(str, command))
    return str(command) if command else repeating("train", folder) if run.config else ""
