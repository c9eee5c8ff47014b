"""Concurrent runs as bars on the terminal, and their results side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from lorakit.cli.bars import Bars
from lorakit.cli.printed import asking
from lorakit.cli.progress import STAGES, probe_line
from lorakit.cli.show import console, duration, is_of_end, say
from lorakit.extras import no_page
from lorakit.files.wording import count, size


class TogetherWatcher(Bars):
    """Shows what `run_together` reports: one bar a job; use it as a context manager."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[detail]}", markup=False),
        )
        self._bars: dict[str, TaskID] = {}

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        match event["kind"]:
            case "stage":
                say([STAGES.get(event["name"], event["name"])])
            case "jobs":
                self._jobs(event)
            case "train":
                rate = event["real_tokens_per_second"]
                detail = f"loss {event['loss']:.3f}  {rate:,.0f} tok/s"
                self._progress.update(
                    self._bars[event["job"]], completed=event["step"], detail=detail
                )
            case "eval" if event["step"]:
                self._progress.console.print(
                    f"  {event['job']}, step {event['step']}: held-out loss {event['loss']:.4f}"
                )
            case "probe":
                say([f"{event['job']}: {probe_line(event)}"])
            case "note":
                say([f"{event['job']}: {event['text']}"])
            case "resume":
                self._progress.update(self._bars[event["job"]], completed=event["step"])

    def _jobs(self, event: Mapping[str, Any]) -> None:
        ready, forecast = event["prepared"], event["estimate"].forecast
        shown: set[str] = set()
        for job, each in zip(event["jobs"], ready, strict=True):
            if job.task not in shown:
                shown.add(job.task)
                say([f"{job.task or 'rows'}: {note}" for note in each.data.notes])
            say(
                [
                    f"{job.name}: {count(len(each.data.train))} rows, {each.steps} steps at "
                    f"{each.learning_rate:g}, {each.plan}"
                ]
            )
            self._bars[job.name] = self._progress.add_task(job.name, total=each.steps, detail="")
        from lorakit.kernels.chosen import kernels_of  # it imports torch

        busy, note = event["estimate"].busy, event["estimate"].note
        say(
            [
                f"forecast: {size(forecast.peak_memory_bytes)} of memory, "
                f"{duration(forecast.seconds)} of training for all {len(ready)} at once",
                *([busy] if busy else []),
                *([note] if note else []),
                kernels_of(ready[0].session.model).line,
            ]
        )


def summarise_jobs(result: Mapping[str, Any], out: Path, prompt: str | None = None) -> None:
    """Print the jobs side by side; `prompt` is the mapping by which rows became prompts."""
    table = Table(box=None, pad_edge=False)
    for name in ("", "rank", "parameters", "steps", "loss before", "held-out loss"):
        table.add_column(name, justify="right" if name else "left")
    for job in result["jobs"]:
        if job["diverged"]:
            table.add_row(job["name"], "", "", "", "", "diverged")
            continue
        losses = [job[name] for name in ("eval_loss_before", "eval_loss")]
        table.add_row(
            job["name"],
            str(job["rank"]),
            count(job["trainable_parameters"]),
            str(job["steps"]),
            *(f"{loss:.4f}" if loss is not None else "" for loss in losses),
        )
    console.print(table)
    why = no_page()
    say(
        [
            *(f"{job['name']}: {job['diverged']}" for job in result["jobs"] if job["diverged"]),
            *(
                f"{job['name']}: {note}"
                for job in result["jobs"]
                for note in job.get("notes") or ()
                if is_of_end(note)
            ),
            f"{duration(result['train_seconds'])} of training for all, "
            f"{size(result['peak_memory_bytes'])} of memory",
            f"adapters: {out}/NAME/adapter" + ("" if why else f"; report: {out / 'report.html'}"),
            *(
                f"stored {job['name']}:  {job['saved_as']}"
                for job in result["jobs"]
                if job.get("saved_as") and job["current"]
            ),
            *([f"note: {why}"] if why else []),
            *(f"note: {note}" for note in result["notes"] if "answers reached the limit" in note),
            *(
                f"try {job['name']}:  {asking(out / job['folder'] / 'adapter', prompt)}"
                for job in result["jobs"]
                if not job["diverged"]
            ),
        ]
    )
