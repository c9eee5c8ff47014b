"""`lorakit generate --data`: options, bars and the last lines."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from lorakit.cli.bars import Bars
from lorakit.cli.options import flatten
from lorakit.cli.progress import fetching
from lorakit.cli.show import duration, say, warn
from lorakit.cli.spec_options import read_spec
from lorakit.config import load_config
from lorakit.errors import ConfigError, InterruptedRunError
from lorakit.files.wording import command_line
from lorakit.option import options_of
from lorakit.run.present import require_present
from lorakit.serving.answering.spec import AnswerSpec, prompts_alone

OWN = tuple(option.name for option in options_of(AnswerSpec, ""))
"""Names of the options that count for files alone."""
_STAGES = {"check": "reading the rows", "answer": "answering", "write": "writing"}


def answer_file(
    flags: Mapping[str, Any],
    *,
    adapter: str | None,
    prompts: list[str],
    sampling: Mapping[str, Any],
    force: bool,
) -> None:
    """Answer the rows of a file, as `lorakit generate --data` does."""
    if prompts:
        raise ConfigError(
            f"a prompt ({prompts[0]!r:.40}) and --data: give one of them; the rows of --data are prompts"
        )
    spec = read_spec(AnswerSpec, flags)
    given = flatten({name: value for name, value in flags.items() if name not in OWN})
    config = load_config(None, prompts_alone(given))
    if spec.choices and "max_new_tokens" in config.given:
        raise ConfigError("--max-new-tokens has no use with --choices: the labels are the answers")
    require_present(config, adapter)
    from lorakit.run.answer_limit import most_tokens, with_answer_limit
    from lorakit.serving.answering.command import run_answering

    config = with_answer_limit(config, adapter)

    try:
        with fetching() as progress, AnswerWatcher() as watcher:
            made = run_answering(
                *(config, adapter, spec),
                **sampling,
                force=force,
                progress=progress,
                report=watcher,
            )
    except KeyboardInterrupt:
        again = list(sys.argv[1:])
        again += [] if "--resume" in again else ["--resume"]
        raise InterruptedRunError(
            f"interrupted; what was answered is kept. Continue with: {command_line(*again)}"
        ) from None
    if made is None:
        say([f"{spec.out} is finished: nothing to do"])
        return
    lines = []
    if made.unfinished:
        lines.append(
            f"{made.unfinished:,} of {made.rows:,} answers reached the limit of "
            f"{most_tokens(config)} tokens, row {made.first_unfinished:,} first: they may be "
            "incomplete (--max-new-tokens raises it)"
        )
    if made.errors:
        lines.append(f"{made.errors:,} rows have no answer: see {spec.columns[-1]}")
    now = made.rows - made.resumed
    speed = f", {now / made.seconds:,.1f} rows/s" if now else ""
    earlier = f"; {made.resumed:,} were answered before" if made.resumed else ""
    lines.append(f"{made.rows:,} rows in {duration(made.seconds)}{speed}{earlier}")
    say([*lines, f"written: {Path(made.out)}"])


class AnswerWatcher(Bars):
    """Bars on standard error: rows read, answered, written."""

    def __init__(self) -> None:
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}", markup=False),
            TimeRemainingColumn(compact=True),
            on_errors=True,
        )
        self._task: TaskID | None = None
        self._skipped = 0

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        if event["kind"] == "note":
            warn(event["text"])
        elif event["kind"] == "stage":
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._skipped = event["done"]
            name, done, total = _STAGES[event["name"]], event["done"], event["total"]
            self._task = self._progress.add_task(name, total=total, completed=done, speed="")
        elif self._task is not None:
            task = self._progress.tasks[-1]
            done = event["done"] - self._skipped
            speed = f"{done / task.elapsed:,.1f} rows/s" if task.elapsed and done else ""
            self._progress.update(self._task, completed=event["done"], speed=speed)
