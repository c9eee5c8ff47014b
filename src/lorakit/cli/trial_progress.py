"""Trials as bars and lines on the terminal, for a comparison and for a search for a rank."""

import time
from collections.abc import Mapping
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from lorakit.cli.bars import Bars
from lorakit.cli.show import duration

_STAGES = {
    "general": "generating for the general prompts",
    "measure": "measuring",
    "answer": "generating for held-out prompts",
}


class TrialWatcher(Bars):
    """Shows what a runner of trials reports; use it as a context manager.

    One bar counts the trials of the whole, and one the steps of each trial that runs.
    """

    def __init__(self) -> None:
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
        )
        self._whole: TaskID | None = None
        self._running: dict[str, tuple[TaskID, float]] = {}

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        match event["kind"]:
            case "phase":
                self._phase(event["name"], event["trials"])
            case "begin":
                task = self._progress.add_task(event["label"], total=None, detail="starting")
                self._running[event["key"]] = (task, time.monotonic())
            case "stage":
                self._of(event, detail=_STAGES.get(event["name"], event["name"]))
            case "train":
                detail = f"loss {event['loss']:.3f}  {event['real_tokens_per_second']:,.0f} tok/s"
                self._of(event, completed=event["step"], total=event["steps"], detail=detail)
            case "eval" if event["step"]:
                self._of(event, detail=f"held-out loss {event['loss']:.4f}")
            case "end":
                task, started = self._running.pop(event["key"])
                self._progress.remove_task(task)
                took = duration(time.monotonic() - started)
                self._progress.console.print(f"  {event['label']}: {took}")
                if self._whole is not None:
                    self._progress.advance(self._whole)

    def _phase(self, name: str, trials: int) -> None:
        if self._whole is not None:
            self._progress.remove_task(self._whole)
        self._whole = self._progress.add_task(
            f"{name}: trials", total=trials, detail="finished ones are kept"
        )

    def _of(self, event: Mapping[str, Any], **fields: Any) -> None:
        if event["key"] in self._running:
            self._progress.update(self._running[event["key"]][0], **fields)
