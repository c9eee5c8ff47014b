"""A run's events as bars and lines on the terminal."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from lorakit.cli.bars import Bars
from lorakit.cli.show import console, duration, errors, left_out, plan_table, say, warn
from lorakit.files.wording import count, size

STAGES = {
    "load": "loading the model and the rows",
    "train": "training",
    "probe": "looking for a learning rate from the adapter's state",
    "save": "saving",
    "before": "generating before training",
    "after": "generating after training",
    "download": "downloading the built-in model",
    "convert": "converting the built-in model",
    "vllm": "starting vLLM",
}


class TrainingWatcher(Bars):
    """Shows what `run_training` reports; use it as a context manager."""

    def __init__(self) -> None:
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[detail]}", markup=False),
        )
        self._task: TaskID | None = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        match event["kind"]:
            case "stage":
                self._stage(event["name"], event.get("steps"))
            case "progress":
                name, done, total = event["at"]
                self._update(completed=done, total=total, description=STAGES.get(name, name))
            case "prepared":
                show_prepared(event["prepared"])
            case "train":
                rate, loss = event["real_tokens_per_second"], event["loss"]
                self._update(completed=event["step"], detail=f"loss {loss:.3f}  {rate:,.0f} tok/s")
            case "eval":
                where = f"step {event['step']}" if event["step"] else "before training"
                self._progress.console.print(
                    f"  {where}: held-out loss {event['loss']:.4f} nats per token"
                )
            case "resume":
                self._progress.console.print(f"  resumed after step {event['step']}")
                self._update(completed=event["step"])
            case "probe":
                self._progress.console.print(f"  {probe_line(event)}")
            case "note":
                warn(event["text"])

    def _stage(self, name: str, total: int | None) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(STAGES.get(name, name), total=total, detail="")

    def _update(self, **fields: Any) -> None:
        if self._task is not None:
            self._progress.update(self._task, **fields)


def probe_line(event: Mapping[str, Any]) -> str:
    """One try of a probe of learning rates."""
    loss = event["loss"]
    outcome = "diverged" if loss is None else f"held-out loss {loss:.4f}"
    return f"rate {event['learning_rate']:g}, {event['steps']} steps: {outcome}"


@contextmanager
def fetching() -> Iterator[Callable[[str, int, int], None]]:
    """A callback that shows a bar for each stage, such as a download; no bar before the first.

    For a stage without a total it shows the seconds that have passed.
    """
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )
    tasks: dict[str, TaskID] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(STAGES.get(stage, stage), total=total or None)
            bars.start()
        name = STAGES.get(stage, stage) + ("" if total else f", {done} s so far")
        bars.update(tasks[stage], completed=done, total=total or None, description=name)

    try:
        yield show
    finally:
        bars.stop()


def show_prepared(prepared: Any) -> None:
    """The rows, the plan and the forecast of a run that is about to start."""
    from lorakit.kernels.chosen import kernels_of  # it imports torch
    from lorakit.kernels.packed.counting import packing_of

    data, forecast, model = prepared.data, prepared.forecast, prepared.session.model
    say(data.notes)
    rows = f"{count(len(data.train))} training rows, {count(len(data.eval))} held-out rows"
    share = data.train.loss_tokens / data.train.tokens
    say([f"{rows}; {count(data.train.tokens)} training tokens, {share:.0%} of them supervised"])
    console.print(plan_table(prepared.plan))
    say(left_out(prepared.plan))
    dtype, packing = str(model.dtype).removeprefix("torch."), packing_of(model)
    held = dtype if packing is None else f"{packing}, the rest in {dtype},"
    say(
        [
            f"{prepared.steps} steps at {_rate(prepared)}, base in {held} on {model.device}",
            f"forecast: {size(forecast.peak_memory_bytes)} of memory, "
            f"{duration(forecast.seconds)} of training, "
            f"{forecast.flops_per_token / 1e6:,.0f} MFLOP a token at "
            f"{forecast.matmul_flops / 1e9:,.0f} GFLOP/s",
            *([prepared.estimate.busy] if prepared.estimate.busy else []),
            *([prepared.estimate.note] if prepared.estimate.note else []),
            kernels_of(model).line,
        ]
    )


def _rate(prepared: Any) -> str:
    if prepared.parent is not None and prepared.config.train.learning_rate == "auto":
        return "a learning rate that a probe will find"
    return f"learning rate {prepared.learning_rate:g}"
