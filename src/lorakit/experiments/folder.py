"""The folder of a trial: what is asked for first, the result last.

trials/<key>/
  trial.json     worker, spec, where, label
  log.txt        what the process printed
  …              files of the worker's own
  result.json    written last, beside and renamed: with it the trial is done, without it not begun
"""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

from lorakit.errors import OutputError
from lorakit.experiments.spec import Outcome, Report, Trial, Worker
from lorakit.files.whole import write_json

TRIAL, RESULT, LOG, ERROR = "trial.json", "result.json", "log.txt", "error.json"

# Says to a trial's process that it should end with the one that started it.
TIED = "--tied"


def earlier_outcome(root: Path, trial: Trial) -> Outcome | None:
    """The outcome of a trial that was done before; None where it was not, or not to its end.

    Raises:
        OutputError: its result cannot be read.
    """
    file = root / trial.key / RESULT
    if not file.is_file():
        return None
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OutputError(f"{file} is damaged ({error}); remove {file.parent}") from None
    return Outcome(trial, result, file.parent, True)


def begin(root: Path, trial: Trial) -> Path:
    """An empty folder for the trial, with what is asked for in it.

    Raises:
        OutputError: it cannot be made.
    """
    folder = root / trial.key
    try:
        if folder.exists():
            shutil.rmtree(folder)  # of a process that was killed
        folder.mkdir(parents=True)
        write_json(folder / TRIAL, trial.to_dict())
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from None
    return folder


def work(folder: Path, report: Report) -> dict[str, Any]:
    """Do the trial of a folder, and keep its result there."""
    trial = json.loads((folder / TRIAL).read_text(encoding="utf-8"))
    result = worker(trial["worker"])(trial["spec"], trial["where"], folder, report)
    write_json(folder / RESULT, result)
    return result


def worker(name: str) -> Worker:
    """The function that 'package.module:function' names."""
    module, _, function = name.partition(":")
    named: Worker = getattr(importlib.import_module(module), function)
    return named
