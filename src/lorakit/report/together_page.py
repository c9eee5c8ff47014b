"""The page of several adapters that were trained at once: the jobs side by side, then each alone."""

from pathlib import Path
from typing import Any

from lorakit.adapters.measurements import score_name
from lorakit.extras import no_page
from lorakit.report import run_tables as tables
from lorakit.report.answers import sample
from lorakit.report.html import write_page
from lorakit.report.numbers import DASH, count, duration, is_number, loss, size
from lorakit.report.read import Record, read_json, read_run
from lorakit.report.run_figures import run_figures
from lorakit.report.run_tables import Tile
from lorakit.report.wording import first_score, score_value, verdict

_SAMPLES = 3
"""Answers of each job; the job's own page has all."""


def write_together_report(folder: str | Path) -> Path | None:
    """Write `report.html` for all jobs of `lorakit train --tasks` or `--ranks`, from plain files.

    Reads RUN/result.json and of each job NAME/result.json, metrics.jsonl and samples.json. The page
    stands alone: no network, no scripts. Returns its path, or None where
    `lorakit.extras.no_page` says why there is none.

    Raises:
        DataError: a file is broken.
        OutputError: the page or a plot cannot be written.
    """
    if no_page() is not None:
        return None
    folder = Path(folder)
    result = read_json(folder / "result.json", dict)
    jobs = [job for job in result.get("jobs") or () if isinstance(job, dict)]
    config = folder / "config.yaml"
    return write_page(
        folder / "report.html",
        "together.html.j2",
        name=folder.resolve().name,
        title=f"{result.get('model', '')}, {len(jobs)} adapters at once",
        tiles=_tiles(result, jobs),
        notes=[str(note) for note in result.get("notes") or ()],
        rows=[_row(job) for job in jobs],
        jobs=[_job(folder, job) for job in jobs],
        command=str(result.get("command") or ""),
        config=config.read_text(encoding="utf-8").strip() if config.is_file() else "",
    )


def _tiles(result: Record, jobs: list[Record]) -> list[Tile]:
    ended = sum(not job.get("diverged") for job in jobs)
    tiles = [Tile("Adapters", str(ended), "", "" if ended == len(jobs) else f"of {len(jobs)}")]
    if is_number(result.get("train_seconds")):
        tiles.append(Tile("Time of the steps", duration(result["train_seconds"]), "", "for all"))
    if is_number(result.get("peak_memory_bytes")):
        tiles.append(Tile("Peak memory", size(result["peak_memory_bytes"]), "", "for all"))
    return tiles


def _row(job: Record) -> tuple[str, ...]:
    """One line of the table; a job that diverged says so in place of its figures."""
    if job.get("diverged"):
        return (str(job.get("name")), *[DASH] * 5, "diverged", "")
    scores, first = job.get("scores_after") or {}, first_score(job)
    stored = str(job.get("saved_as") or "")
    return (
        str(job.get("name")),
        count(job.get("rank")),
        count(job.get("rows")),
        count(job.get("steps")),
        loss(job.get("eval_loss_before")),
        loss(job.get("eval_loss")),
        f"{score_name(first)} {score_value(first, scores[first])}" if first else DASH,
        stored if job.get("current", True) or not stored else f"{stored}, not current",
    )


def _job(folder: Path, job: Record) -> dict[str, Any]:
    """A job's own section: verdict, notes, learning curve, scores and a few answers."""
    name = str(job.get("name"))
    if job.get("diverged"):
        return {"name": name, "diverged": str(job["diverged"])}
    own = folder / str(job.get("folder", name))
    run = read_run(own)
    figures = run_figures(run, own / "plots", name)
    return {
        "name": name,
        "diverged": "",
        "page": f"{own.name}/report.html",
        "verdict": verdict(run.result),
        "notes": [str(note) for note in run.result.get("notes") or ()],
        "curve": figures.get("learning_curve"),
        "scores": [
            (row["name"], row["before"], row["after"], row["change"])
            for row in tables.scores(run.result)
        ],
        "samples": [sample(record) for record in run.samples[:_SAMPLES]],
    }
