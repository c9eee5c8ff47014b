"""The answers that are there already: a file beside the output, one line for each window of rows.

    {"depends": {…}, "environment": {…}, "seed": …}          what the answers depend on
    {"first": 0, "answers": [["yes", 0.98, true, null, []], …]}
    {"first": 512, "answers": …}

A line is flushed to the disk before the next window begins. After a kill the last line may be missing
or cut; it is left out then, and its rows are answered again, in the same window.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from lorakit.errors import OutputError
from lorakit.files.journal import Journal, whole_lines
from lorakit.serving.answering.row_answer import RowAnswer

ENDING = ".unfinished"
_WHAT = "unfinished answers"


@dataclass(frozen=True)
class Begun:
    """What the answers of a file depend on.

    Attributes:
        depends: rows, model, adapter, template and options; other ones make other answers.
        environment: software and machine, which may change last bits.
        seed: of the sampling.
    """

    depends: Mapping[str, Any]
    environment: Mapping[str, Any]
    seed: int

    def line(self) -> str:
        """As the first line."""
        return json.dumps(
            {"depends": self.depends, "environment": self.environment, "seed": self.seed}
        )


def place_of(out: Path) -> Path:
    """Where the answers are kept until all are there."""
    return out.with_name(out.name + ENDING)


def begun(path: Path) -> Begun | None:
    """What the answers in a file depend on; None where there are none.

    Raises:
        OutputError: the file is no file of unfinished answers.
    """
    if not path.is_file():
        return None
    for line in whole_lines(path):
        try:
            found = json.loads(line)
            return Begun(found["depends"], found["environment"], int(found["seed"]))
        except (ValueError, KeyError, TypeError):
            raise _damaged(path, 1) from None
    return None


def answers_in(path: Path) -> Iterator[list[RowAnswer]]:
    """The answers of each window, one window at a time.

    Raises:
        OutputError: a line is damaged.
    """
    expected = 0
    lines = whole_lines(path)
    next(lines, None)
    for number, line in enumerate(lines, 2):
        try:
            found = json.loads(line)
            first, answers = found["first"], [_answer(values) for values in found["answers"]]
        except (ValueError, KeyError, TypeError, IndexError):
            raise _damaged(path, number) from None
        if first != expected:
            raise _damaged(path, number)
        expected += len(answers)
        yield answers


def append(journal: Journal, first: int, answers: list[RowAnswer]) -> None:
    """Keep the answers of a window.

    Raises:
        OutputError: the disk is full.
    """
    values = [astuple(answer) for answer in answers]
    journal.append(json.dumps({"first": first, "answers": values}, ensure_ascii=False))


def open_journal(path: Path) -> Journal:
    """The file, to append to.

    Raises:
        OutputError: it cannot be written, or another process writes it.
    """
    return Journal(path, what=_WHAT)


def _answer(values: list[Any]) -> RowAnswer:
    text, probability, finished, error, shares = values
    return RowAnswer(text, probability, finished, error, tuple(shares))


def _damaged(path: Path, line: int) -> OutputError:
    return OutputError(
        f"{path}:{line}: this is no line of unfinished answers; remove the file to begin again, without "
        "--resume"
    )
