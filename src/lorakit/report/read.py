"""A run's folder, as plain values. Any file of it may be missing; one that is broken is named."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.errors import DataError

Record = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """The files that the report is made of.

    Attributes:
        name: of the folder.
        result: result.json, empty where there is none.
        train: the lines of metrics.jsonl of kind "train", by rising step, one a step.
        evals: those of kind "eval"; step 0 is before training.
        samples: samples.json.
        config: the text of config.yaml, empty where there is none.
    """

    name: str
    result: Record
    train: tuple[Record, ...]
    evals: tuple[Record, ...]
    samples: tuple[Record, ...]
    config: str

    @property
    def held_out(self) -> tuple[Record, ...]:
        """The evaluations; the one before training may stand in result.json alone."""
        before = self.result.get("eval_loss_before")
        if before is None or (self.evals and self.evals[0]["step"] == 0):
            return self.evals
        return ({"step": 0, "loss": before}, *self.evals)


def read_run(folder: Path) -> RunFiles:
    """Read a run's folder.

    Raises DataError where it is no folder, holds neither result.json nor metrics.jsonl, or a
    file of it is not the JSON it should be. A last line of metrics.jsonl that was truncated
    by a kill is left out, as it is when the run resumes.
    """
    result, metrics = folder / "result.json", folder / "metrics.jsonl"
    if not result.is_file() and not metrics.is_file():
        raise DataError(
            f"{folder} holds no run: neither result.json nor metrics.jsonl is in it; "
            "give the folder that `lorakit train --out` wrote"
        )
    records = _lines(metrics)
    config = folder / "config.yaml"
    return RunFiles(
        name=folder.resolve().name,
        result=read_json(result, dict),
        train=_by_step(records, "train"),
        evals=_by_step(records, "eval"),
        samples=tuple(s for s in read_json(folder / "samples.json", list) if isinstance(s, dict)),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
    )


def read_json(path: Path, kind: type) -> Any:
    """A file's JSON, which must be of this kind; an empty one of it where there is no file."""
    if not path.is_file():
        return kind()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON and UTF-8 errors both are
        raise DataError(
            f"{path} is not JSON: {error}; run the command that wrote it again"
        ) from None
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list"
        raise DataError(f"{path} holds a {type(value).__name__} where {wanted} is expected")
    return value


def _lines(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    records = []
    # errors="replace": a kill may truncate a character; then its line is not JSON, and it is the last.
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for index, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if index == len(lines):
                break
            raise DataError(f"{path}, line {index} is not JSON: {error}") from None
        if isinstance(record, dict):
            records.append(record)
    return records


def _by_step(records: list[Record], kind: str) -> tuple[Record, ...]:
    # A resumed run may have done a step twice; the later line is the one that counts.
    by_step = {
        record["step"]: record
        for record in records
        if record.get("kind") == kind and isinstance(record.get("step"), int)
    }
    return tuple(by_step[step] for step in sorted(by_step))
