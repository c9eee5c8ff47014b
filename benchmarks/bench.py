"""What the benchmarks share: a process for each measurement, medians, result files, tables.

A benchmark is one script that plays two parts. Started by a person it makes tasks, plain mappings,
and hands each to `measure`, which starts the script again in a process of its own: nothing one
measurement leaves behind (memory, warm caches, threads) can reach the next, and the largest
resident size of the process is the measurement's. There `task()` gives the mapping back.
"""

import json
import shlex
import statistics
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Line = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
_TASK = "--task"


def measure(task: Mapping[str, Any], script: str = "") -> Line:
    """Start `script` (this one) in a new process with a task; the JSON that it prints last.

    Raises:
        SystemExit: it failed; what it wrote to stderr has been shown.
    """
    command = [sys.executable, script or sys.argv[0], _TASK, json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SystemExit(f"{shlex.join(command)} ended with {done.returncode}")
    answer: Line = json.loads(done.stdout.splitlines()[-1])
    return answer


def task() -> Line | None:
    """The task that `measure` gave to this process, None where a person started it."""
    return json.loads(sys.argv[2]) if sys.argv[1:2] == [_TASK] else None


def run(main: Callable[[], None], work: Callable[[Line], Line]) -> None:
    """Do the task of this process, or be the command that a person started."""
    given = task()
    if given is None:
        main()
    else:
        print(json.dumps(work(given)))


def surroundings(device: Any, *packages: str) -> Line:
    """Machine and versions of this process, for the line of its measurement."""
    from importlib.metadata import version

    from lorakit.run.machine import machine, versions

    named = {name: version(name) for name in packages}
    return {"machine": machine(device), "versions": versions() | named}


def session() -> Line:
    """What all lines of one command have in common: when it was given, and how."""
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "command": command(sys.argv)}


def command(arguments: Sequence[str]) -> str:
    """A command line to repeat; where the data lie on this machine is left out of it."""
    said = list(arguments)
    for i, argument in enumerate(said[:-1]):
        if argument == "--data":
            said[i + 1] = "DATA"
    said[0] = f"benchmarks/{Path(said[0]).name}"
    return shlex.join(["python", *said])


def append(path: Path | None, lines: Iterable[Line]) -> None:
    """Add lines to a result file, where one is asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def read(path: Path) -> list[Line]:
    """The lines of a result file; none where it is not there."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def newest(lines: Sequence[Line], **wanted: Any) -> list[Line]:
    """Of the lines with these values, those of the command that was given last."""
    found = [line for line in lines if all(line.get(k) == v for k, v in wanted.items())]
    last = max((line["date"] for line in found), default=None)
    return [line for line in found if line["date"] == last]


def pick(parser: ArgumentParser, text: str, known: Mapping[str, T]) -> dict[str, T]:
    """What names with commas between them stand for; an unknown one ends the command."""
    names = text.split(",")
    for name in names:
        if name not in known:
            parser.error(f"{name!r} is not one of {', '.join(known)}")
    return {name: known[name] for name in names}


def median(lines: Sequence[Line], name: str) -> float:
    """Median of one value over lines."""
    return statistics.median(line[name] for line in lines)


def after_first(seconds: Sequence[float]) -> Sequence[float]:
    """Steps that count: a run's first one warms up, unless it is the only one."""
    return seconds[1:] or seconds


def note(text: str) -> None:
    """One line of progress, beside the results."""
    print(text, file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def gigabytes(count: float) -> str:
    """4.09 GB for 4,091,000,000."""
    return f"{count / 1e9:.2f} GB"
