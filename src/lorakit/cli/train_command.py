"""`lorakit train`."""

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Annotated, Any

import typer

from lorakit.cli.options import flatten, with_options
from lorakit.cli.printed import asking
from lorakit.cli.progress import TrainingWatcher
from lorakit.cli.show import (
    console,
    duration,
    is_of_end,
    report_line,
    say,
    scores_table,
    styled,
    warn,
)
from lorakit.config import RunConfig, load_config
from lorakit.errors import InterruptedRunError
from lorakit.files.wording import command_line, count, size
from lorakit.run.folder import CONFIG, repeating
from lorakit.run.present import require_present, require_run_folder


def train(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="A run file (YAML) with an option a line, such as 'rank: 16'. A flag overrides its "
            "line. RUN/config.yaml with another --out repeats a run."
        ),
    ] = None,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Train an adapter for your task: a file of rows in, an adapter out.

    The model stays frozen; a pair of small matrices beside each weight is trained. Examples:

    `lorakit train --data rows.jsonl --out runs/first`

    `lorakit train --data rows.csv --prompt '{question}' --completion '{answer}' --out runs/csv`

    `lorakit train --data more.jsonl --from invoices --save-as invoices --out runs/second`

    `lorakit train --data rows.jsonl --ranks 4,8,16,32 --out runs/ranks`

    `lorakit train --tasks mails=mails.jsonl,notes=notes.csv --out runs/tasks`

    `lorakit train --tasks mails=mails.jsonl,notes=notes.csv --task-option mails.eval_data=held_out.jsonl --out runs/more`

    The run folder then holds `adapter/` (in peft's format), `report.html`, `result.json`,
    `metrics.jsonl` and `config.yaml`. With `--ranks` or `--tasks` it holds such a folder for each
    adapter and one page for all; they are trained concurrently on one base. Ctrl-C stops after the
    current step and saves; `--resume` continues. A result that is no better than what it was trained
    from never becomes the current version of a name by itself.
    """
    settings = resolve(config, flatten(flags))
    command = repeating("train", settings.output.out)
    for note in settings.notes:
        warn(note)
    require_run_folder(settings)
    if settings.together:
        start_together(settings, command)
    else:
        require_present(settings)
        start_training(settings, command)


command = with_options(train)


def resolve(path: Path | None, flags: Mapping[str, Any]) -> RunConfig:
    """The run's configuration; with --resume and no run file, the one in the run folder."""
    if flags.get("resume") and path is None and "out" in flags:
        earlier = Path(str(flags["out"])) / CONFIG
        path = earlier if earlier.is_file() else None
    return load_config(path, flags)


def start_training(config: RunConfig, command: str) -> dict[str, Any]:
    """Train with bars on the terminal, write the report, and print the result."""
    from lorakit.report import write_report
    from lorakit.run.commands.training import run_training

    out = Path(config.output.out)
    with stop_at_ctrl_c() as stop, TrainingWatcher() as watcher:
        try:
            result = run_training(config, report=watcher, should_stop=stop.is_set, command=command)
        except InterruptedRunError as error:
            again = command_line("train", "--resume", "--out", out)
            raise InterruptedRunError(f"{error}; it is saved. Continue with: {again}") from None
    write_report(out)
    summarise(result, out, config.data.prompt)
    return result


def start_together(config: RunConfig, command: str) -> dict[str, Any]:
    """Train several adapters concurrently, write the report of each, and print the results."""
    from lorakit.cli.together_progress import TogetherWatcher, summarise_jobs
    from lorakit.report import write_report, write_together_report
    from lorakit.run.commands.together import run_together

    out = Path(config.output.out)
    with stop_at_ctrl_c() as stop, TogetherWatcher() as watcher:
        try:
            result = run_together(config, report=watcher, should_stop=stop.is_set, command=command)
        except InterruptedRunError as error:
            again = command_line("train", "--resume", "--out", out)
            raise InterruptedRunError(f"{error}; it is saved. Continue with: {again}") from None
    for job in result["jobs"]:
        if not job["diverged"]:
            write_report(out / job["folder"])
    write_together_report(out)
    summarise_jobs(result, out, config.data.prompt)
    return result


def summarise(result: Mapping[str, Any], out: Path, prompt: str | None = None) -> None:
    """Print a run's figures; `prompt` is the mapping by which its rows became prompts."""
    if result["eval_loss"] is not None:
        before = result["eval_loss_before"]
        console.print(
            styled(
                f"\nheld-out loss [bold]{before:.4f}[/] before, "
                f"[bold]{result['eval_loss']:.4f}[/] after (nats per token, step "
                f"{result['best_step']})"
            )
        )
    if result["scores_after"]:
        console.print(scores_table(result))
    expected = result["forecast"]
    sizes = {f.name: f.stat().st_size for f in (out / "adapter").iterdir()}
    state = sizes.pop("optimizer.safetensors", 0)
    more = f"; {size(state)} more of optimizer state, for --from" if state else ""
    say(
        [
            f"{count(result['trainable_parameters'])} parameters trained in "
            f"{duration(result['train_seconds'])} (forecast {duration(expected['seconds'])}), "
            f"{size(result['peak_memory_bytes'])} of memory "
            f"(forecast {size(expected['peak_memory_bytes'])})",
            f"{result['real_tokens_per_second']:,.0f} real tokens/s, {_share(result)}",
            f"adapter: {out / 'adapter'} ({size(sum(sizes.values()))}{more})",
            *([f"stored:  {result['saved_as']}"] if result["current"] else []),
            report_line(out),
            f"try it:  {asking(out / 'adapter', prompt)}",
            *(
                f"note: {note}"
                for note in result["notes"]
                if "reached" in note or "not scored" in note or is_of_end(note)
            ),
        ]
    )


@contextmanager
def stop_at_ctrl_c() -> Iterator[Event]:
    """An event that the first Ctrl-C (or SIGTERM) sets; the second Ctrl-C ends at once."""
    event = Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        console.print("\nstopping after this step; Ctrl-C again to stop at once")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _share(result: Mapping[str, Any]) -> str:
    """How fast a run was beside the matmuls that were timed before it."""
    share = result["fraction_of_limit"]
    if share > 1:
        return "more than the matmuls that were timed before it: the machine was busier then"
    return f"{share:.0%} of the rate that this machine's matmuls allow"
