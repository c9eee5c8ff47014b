"""The folder of an experiment made of trials, such as a comparison or a search for a rank.

RUN/
  config.yaml      every option, the command that began it above them
  trials/          one folder a trial
"""

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.config import read_yaml
from lorakit.errors import InputError, OutputError
from lorakit.experiments.pool import processes
from lorakit.experiments.settings import Settings
from lorakit.experiments.spec import Report, Runner
from lorakit.run import folder as folders

TRIALS = "trials"
# Options that say only how and where a command was run.
_HOW = ("resume", "out", "workers")

MakeRunner = Callable[[Path, Report], Runner]
"""(folder of the trials, report) -> what does them."""


@dataclass(frozen=True)
class Experiment:
    """An experiment that has begun.

    Attributes:
        folder: its own.
        command: the command that began it.
        runner: does its trials.
        report: told of its phases.
    """

    folder: Path
    command: str
    runner: Runner
    report: Report

    @property
    def trials(self) -> Path:
        """Where the folders of the trials lie."""
        return self.folder / TRIALS

    @contextmanager
    def profiling(self) -> Iterator[None]:
        """Within the block the first trial is run.

        It finds out whether what was given can be used. Where it cannot and no other trial was done,
        the folder is emptied, so that the mended command can use it.
        """
        self.report({"kind": "phase", "name": "profile", "trials": 1})
        try:
            yield
        except InputError:
            if len(list(self.trials.glob("*/result.json"))) <= 1:
                (self.folder / folders.CONFIG).unlink(missing_ok=True)
                shutil.rmtree(self.trials, ignore_errors=True)
            raise


def begin_experiment(
    settings: Settings[Any],
    command: str,
    report: Report,
    make_runner: MakeRunner | None,
    *,
    what: str,
    later: Collection[str] = (),
) -> Experiment:
    """Make the folder of an experiment, or go on with the one that is there.

    Args:
        settings: its options; `output.out` is the folder, and `output.resume` says which of the two.
        command: how to repeat it.
        report: told of its phases and trials.
        make_runner: makes what does the trials; None for a process each.
        what: what the experiment is called in a message, such as "a comparison".
        later: options that may be others than when it was begun.

    Raises:
        OutputError: the folder holds something else, or an experiment with other options.
    """
    folder, options = Path(settings.config.output.out), settings.to_flat()
    command = _enter(folder, options, command, what, later)
    if make_runner is None:
        runner = processes(folder / TRIALS, workers=settings.spec.workers, report=report)
    else:
        runner = make_runner(folder / TRIALS, report)
    return Experiment(folder, command, runner, report)


def _enter(
    folder: Path, options: Mapping[str, Any], command: str, what: str, later: Collection[str]
) -> str:
    """The command that began it."""
    folders.check_folder(folder, resume=options["resume"])
    recorded = {name: value for name, value in options.items() if name != "resume"}
    if not options["resume"]:
        folders.make_folder(folder)
        folders.write_config(folder, recorded, command)
        return command
    before = read_yaml(folder / folders.CONFIG)
    changed = [
        name
        for name, value in recorded.items()
        if name not in (*_HOW, *later) and json.dumps(before.get(name)) != json.dumps(value)
    ]
    if changed:
        raise OutputError(
            f"{folder} holds {what} with other settings ({', '.join(changed)}): leave them out to "
            "go on with it, or give another --out"
        )
    return folders.command_of(folder) or command
