"""The five tasks of rank_regret.py: their rows, in three kinds, and the options that suit them."""

import json
import random
import string
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """Rows and the flags that suit them; `counts` of training, held-out and test rows."""

    counts: tuple[int, int, int]
    options: dict[str, Any]


TASKS = {
    "snips": Task(
        (960, 200, 300),
        {
            "prompt": "{text}\n",
            "completion": '{{"intent": "{intent}", "slots": {slots}}}',
            "batch_size": 16,
            "max_steps": 60,
        },
    ),
    "e2e": Task(
        (960, 200, 300),
        {
            "prompt": "{context} ||",
            "completion": " {completion}",
            "batch_size": 16,
            "max_steps": 60,
        },
    ),
    "banking77": Task(
        (1920, 300, 500),
        {"prompt": "{text}\n", "completion": "{category}", "batch_size": 32, "max_steps": 60},
    ),
    "gsm8k": Task(
        (360, 100, 150),
        {"prompt": "{question}\n", "completion": "{answer}", "batch_size": 8, "max_steps": 45},
    ),
    "keys": Task(
        (250, 125, 125),
        {
            "prompt": "{key} =",
            "completion": " {value}",
            "batch_size": 50,
            "max_steps": 150,
            "targets": ("q_proj",),
            "layers": "13-14",
        },
    ),
}


def write_rows(
    name: str, data: Path | None, work: Path, counts: tuple[int, int, int]
) -> tuple[Path, Path, Path]:
    """Training, held-out and test rows of a task as files; written once."""
    work.mkdir(parents=True, exist_ok=True)
    files = tuple(work / f"{part}.jsonl" for part in ("train", "held_out", "test"))
    if not all(file.exists() for file in files):
        for file, rows in zip(files, rows_of(name, data, counts), strict=True):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.write_text(text, encoding="utf-8")
    return files  # type: ignore[return-value]


def rows_of(name: str, data: Path | None, counts: tuple[int, int, int]) -> list[list[Any]]:
    """The three kinds of rows, seeded; files are sorted by what they are about."""
    if name == "keys":
        pairs = keys(counts[0])
        return [pairs, pairs[0::2][: counts[1]], pairs[1::2][: counts[2]]]
    assert data is not None
    train, test = {
        "snips": ("snips/train.jsonl", "snips/test.jsonl"),
        "e2e": ("e2e/train.jsonl.gz", "e2e/test.jsonl.gz"),
        "banking77": ("banking77/train.csv", "banking77/test.csv"),
        "gsm8k": ("gsm8k/train.jsonl.gz", "gsm8k/test.jsonl.gz"),
    }[name]
    prompt = {"snips": "text", "e2e": "context", "banking77": "text", "gsm8k": "question"}[name]
    draw = random.Random(0)
    known = list(read(data / train))
    draw.shuffle(known)
    # No prompt is on two sides.
    apart = list({row[prompt] for row in known})
    apart.sort()
    draw.shuffle(apart)
    aside = set(apart[: counts[1]])
    held = [row for row in known if row[prompt] in aside]
    rest = [row for row in known if row[prompt] not in aside]
    tested = [row for row in read(data / test) if row[prompt] not in set(apart)] or list(
        read(data / test)
    )
    draw.shuffle(tested)
    return [rest[: counts[0]], held[: counts[1]], tested[: counts[2]]]


def keys(count: int) -> list[dict[str, str]]:
    """Random keys of 6 letters, and values of 9 signs of 64: 54 bits each."""
    draw = random.Random(0)
    letters, signs = string.ascii_lowercase, string.ascii_letters + string.digits + "+-"
    found = {"".join(draw.choices(letters, k=6)) for _ in range(2 * count)}
    return [
        {"key": key, "value": "".join(draw.choices(signs, k=9))} for key in sorted(found)[:count]
    ]


def read(file: Path) -> Iterable[dict[str, Any]]:
    """Rows of a file of the data folder."""
    from lorakit.data import read_rows

    return (dict(row.fields) for row in read_rows([str(file)]))
