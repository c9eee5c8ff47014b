"""Where the answers to a file's rows go, and what else is written: one frozen spec, quick to import."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lorakit.errors import ConfigError, did_you_mean

UNREAD = "{completion}"
"""Stands for a mapping of completions where only prompts are mapped: rows have no answers yet."""
BadRows = Literal["stop", "mark"]
FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class AnswerSpec:
    """What is written for each row, and where.

    Raises:
        ConfigError: a value is out of its range.
    """

    out: str | None = field(
        default=None,
        metadata={
            "help": "With --data: the file of answers, .jsonl, .csv, .tsv or .parquet. It has every "
            "column of the rows as it was, and the answer and its probability. It appears when all "
            "rows are answered; until then answers are kept in OUT.unfinished."
        },
    )
    resume: bool = field(
        default=False,
        metadata={
            "help": "Go on from OUT.unfinished, if there is one. The file becomes the same as "
            "without the interruption."
        },
    )
    answer_column: str = field(
        default="answer",
        metadata={
            "help": "Name of the column of answers; NAME_probability is the column beside it."
        },
    )
    choices: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Answer with one of these labels, such as yes,no: the likeliest. The column "
            "NAME_probabilities has the probability of each."
        },
    )
    bad_rows: BadRows = field(
        default="stop",
        metadata={
            "help": "What happens to rows that cannot be answered, because a column is missing or "
            "the prompt is too long: stop (before the first answer, and it is said how many there "
            "are), or mark (their answer stays empty, and the column NAME_error says why)."
        },
    )

    keep_every: int = field(
        default=512,
        metadata={
            "help": "Rows that are answered together and then kept on the disk: the most that a kill "
            "loses. Fewer are answered more slowly, because the last of them wait for each other."
        },
    )

    def __post_init__(self) -> None:
        if self.keep_every < 1:
            raise ConfigError(f"keep_every must be at least 1; it is {self.keep_every}")
        if self.bad_rows not in get_args(BadRows):
            known = did_you_mean(str(self.bad_rows), get_args(BadRows))
            raise ConfigError(f"bad_rows is {self.bad_rows!r}; {known}")
        if not self.answer_column.strip():
            raise ConfigError("answer_column is empty: name the column of answers")
        if not all(isinstance(c, str) and c.strip() for c in self.choices):
            raise ConfigError(f"choices holds an empty label: {list(self.choices)}")
        if len(self.choices) == 1:
            raise ConfigError(f"choices names one label, {self.choices[0]!r}: give at least two")
        if len(set(self.choices)) < len(self.choices):
            twice = next(c for c in self.choices if self.choices.count(c) > 1)
            raise ConfigError(f"choices names {twice!r} twice")
        if self.out is not None and self.format is None:
            ending = Path(self.out).suffix
            raise ConfigError(
                f"out {self.out}: the ending {ending!r} names no format of answers; "
                f"{did_you_mean(ending, FORMATS)}"
            )

    @property
    def format(self) -> str | None:
        """Of the file of answers, by its name; None where it names none."""
        return FORMATS.get(Path(self.out or "").suffix.lower())

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are added."""
        name = self.answer_column
        return (
            name,
            f"{name}_probability",
            *([f"{name}_probabilities"] if self.choices else []),
            *([f"{name}_error"] if self.bad_rows == "mark" else []),
        )


def prompts_alone(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of rows in which prompt may stand without completion, which training needs with it."""
    if options.get("prompt") is None or options.get("completion") is not None:
        return dict(options)
    return {**options, "completion": UNREAD}
