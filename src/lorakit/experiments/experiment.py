"""The folder of an experiment made of trials, such as a comparison or a search for a rank.

RUN/
  config.yaml      every option, the command that began it above them
  trials/          one folder a trial
"""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lorakit.config import read_yaml
from lorakit.errors import OutputError
from lorakit.run import folder as folders

TRIALS = "trials"
# Options that say only how and where a command was run.
_HOW = ("resume", "out", "workers")


def enter(
    folder: Path,
    options: Mapping[str, Any],
    command: str,
    *,
    what: str,
    later: Collection[str] = (),
) -> str:
    """Make the folder of an experiment, or go on with the one that is there.

    Args:
        folder: where.
        options: every option by name; "resume" says which of the two.
        command: how to repeat it.
        what: what the experiment is called in a message, such as "a comparison".
        later: options that may be others than when it was begun.

    Returns:
        The command that began it.

    Raises:
        OutputError: the folder holds something else, or an experiment with other options.
    """
    folders.check_folder(folder, resume=options["resume"])
    kept = {name: value for name, value in options.items() if name != "resume"}
    if not options["resume"]:
        folders.make_folder(folder)
        folders.write_config(folder, kept, command)
        return command
    before = read_yaml(folder / folders.CONFIG)
    changed = [
        name
        for name, value in kept.items()
        if name not in (*_HOW, *later) and json.dumps(before.get(name)) != json.dumps(value)
    ]
    if changed:
        raise OutputError(
            f"{folder} holds {what} with other settings ({', '.join(changed)}): leave them out to "
            "go on with it, or give another --out"
        )
    return folders.command_of(folder) or command


def forget_if_empty(folder: Path) -> None:
    """Undo `enter` where no trial was done, so that the mended command can use the folder."""
    if not any((folder / TRIALS).glob("*/result.json")):
        for name in (folders.CONFIG, TRIALS):
            place = folder / name
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
