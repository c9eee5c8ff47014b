"""Kills a `lorakit` command at its n-th write or step, or lets its n-th write fail, and repeats it.

A command of your own takes five lines; `warm` is the fixture of this folder's conftest.py:

    def test_my_command(warm, tmp_path, how):                  # how: "kill" or "fail"
        inputs = ...                                           # a folder with all that it reads
        command = Command(("mine", "--out", "made"), inputs, readable=loads, content=hashes)
        check_faults(command, warm, tmp_path, how)

`loads(folder)` raises where something under its final name does not load; `hashes(folder)` returns
what must be the same after the fault and the repetition as after one run without a fault. If the
repetition is another command line (`train --resume`), give `again`; if files of `inputs` are meant
to change, name them in `changes`. Import what the command needs in server.py's MODULES, so that it
is imported once. What counts as a write is said in shim.py.

A test hits a sample of the events. `LORAKIT_FAULTS=all python -m pytest tests/faults` hits each one,
which takes some minutes: run it after a change to how something is written.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shim import REMOVALS, STEP

TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Command:
    """A command line and what is promised of it.

    Attributes:
        argv: without `lorakit`; it runs in a copy of `inputs`, and paths are relative to that.
        inputs: a folder with all that it reads.
        readable: given the folder after a fault; raises where something visible does not load.
        content: given the folder after the repetition; equal to that of a run without a fault.
        again: command lines of the repetition, given the folder after the fault; None: `argv`.
        changes: names in `inputs` that the command is meant to change; all else there stays.
        without: packages that are not installed, as far as the command can tell.
        within: hit only events at paths that match this pattern of `re`, as "^run/plots/".
    """

    argv: tuple[str, ...]
    inputs: Path
    readable: Callable[[Path], None]
    content: Callable[[Path], Any]
    again: Callable[[Path], Sequence[Sequence[str]]] | None = None
    changes: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    within: str = ""


@dataclass(frozen=True)
class Ran:
    """What a run came to: exit code (a signal's number negated), output, and what it did."""

    code: int
    out: str
    err: str
    events: tuple[tuple[str, str], ...]


class Warm:
    """The process that forks a child for each command."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def run(
        self,
        argv: Sequence[str],
        folder: Path,
        *,
        at: int | None = None,
        how: str = "kill",
        without: Sequence[str] = (),
    ) -> Ran:
        """Run a command line in a folder.

        Args:
            argv: without `lorakit`.
            folder: the current folder; changes under it are counted.
            at: the event that is hit, from 1; None for none.
            how: "kill" or "fail".
            without: packages whose import fails.
        """
        beside = {name: folder.with_name(f"{folder.name}.{name}") for name in ("out", "err", "log")}
        beside["log"].unlink(missing_ok=True)
        request = {
            "argv": list(argv),
            "folder": str(folder),
            "environment": {
                "HOME": str(folder / "home"),
                "LORAKIT_CACHE": str(folder / "cache"),
                "TMPDIR": str(folder),
                "COLUMNS": "120",
            },
            "out": str(beside["out"]),
            "err": str(beside["err"]),
            "trace": str(beside["log"]),
            "at": at,
            "how": how,
            "without": list(without),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = int(self._answer())
        lines = [line.split("\t") for line in beside["log"].read_text().splitlines()]
        events = tuple((kind, path) for kind, path in lines)
        return Ran(code, beside["out"].read_text(), beside["err"].read_text(), events)

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def check_faults(command: Command, warm: Warm, place: Path, how: str, *, most: int = 12) -> None:
    """Hit a command at its events, one at a time, repeat it each time, and check what is promised.

    Args:
        command: what is run.
        warm: runs it.
        place: an empty folder for the runs.
        how: "kill" at writes, removals and steps; "fail" at writes.
        most: how many events are hit: evenly spread, the first and the last among them.

    Raises:
        AssertionError: what was broken by which fault, a line each.
    """
    whole = _workspace(command, place / "whole")
    ran = warm.run(command.argv, whole, without=command.without)
    assert ran.code == 0, ran.err
    command.readable(whole)
    expected, names = command.content(whole), _names(whole)
    may = [
        number
        for number, (kind, path) in enumerate(ran.events, start=1)
        if (how == "kill" or kind not in (*REMOVALS, STEP)) and re.search(command.within, path)
    ]
    assert may, f"{command.argv} writes nothing that is counted"
    broken = []
    for number in spread(may, most):
        folder = _workspace(command, place / f"{how}-{number}")
        said = _one(command, warm, folder, number, how, expected, names)
        kind, path = ran.events[number - 1]
        broken += [f"{how} at event {number}, {kind} {path}: {line}" for line in said]
        if not said:
            shutil.rmtree(folder)
    assert not broken, "\n" + "\n".join(broken)


def spread(numbers: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly, with the first and the last; all where that is asked for."""
    if len(numbers) <= most or os.environ.get("LORAKIT_FAULTS") == "all":
        return list(numbers)
    return [numbers[round(i * (len(numbers) - 1) / (most - 1))] for i in range(most)]


def hashes(*paths: Path) -> dict[str, str]:
    """SHA-256 of every file in these folders, or of these files."""
    found = {}
    for path in paths:
        for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
            found[str(file.relative_to(path.parent))] = _sha256(file)
    return found


def _one(
    command: Command,
    warm: Warm,
    folder: Path,
    number: int,
    how: str,
    expected: Any,
    names: set[str],
) -> list[str]:
    """What one fault broke."""
    before = _inputs(command, folder)
    ran = warm.run(command.argv, folder, at=number, how=how, without=command.without)
    broken = []
    if how == "kill" and ran.code != -9:
        return [f"it ended with {ran.code} and not by the kill: {ran.err[-2000:]}"]
    if how == "fail":
        if ran.code != 2:
            broken.append(f"exit code {ran.code}: {ran.out[-300:]}{ran.err[-2000:]}")
        elif TRACEBACK in ran.err or ran.err.count("error:") != 1:
            broken.append(f"not one clear message: {ran.err}")
        elif "space left" not in ran.err:
            broken.append(f"the message does not say that the disk is full: {ran.err}")
    if _inputs(command, folder) != before:
        broken.append("something that was there before is not what it was")
    try:
        command.readable(folder)
    except Exception as error:
        broken.append(f"something half-written is visible: {error!r}")
    for argv in command.again(folder) if command.again else (command.argv,):
        ran = warm.run(argv, folder, without=command.without)
        if ran.code != 0:
            return [*broken, f"the repetition {argv} fails: {ran.err[-2000:]}"]
    if (found := command.content(folder)) != expected:
        broken.append(f"the repetition made something else: {_differences(expected, found)}")
    if left := _names(folder) ^ names:
        broken.append(f"left behind or missing: {sorted(left)}")
    return broken


def _workspace(command: Command, folder: Path) -> Path:
    shutil.copytree(command.inputs, folder)
    return folder


def _inputs(command: Command, folder: Path) -> dict[str, str]:
    """Hashes of what was there before and has to stay."""
    kept = [p.name for p in command.inputs.iterdir() if p.name not in command.changes]
    there = [folder / name for name in sorted(kept) if (folder / name).exists()]
    return hashes(*there)


def _names(folder: Path) -> set[str]:
    """Every file and folder but locks, and the cache: its next writer clears it, not its readers."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix != ".lock")
    return {str(name) for name in names if name.parts[0] != "cache"}


def _differences(expected: Any, found: Any) -> str:
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
        return ", ".join(f"{k}: {expected.get(k)!r:.300} -> {found.get(k)!r:.300}" for k in keys)
    return f"{expected!r:.500} -> {found!r:.500}"


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
