"""`lorakit generate --data`, hit at any write, goes on to the same bytes."""

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet
import pytest
from harness import Command, check_faults, hashes

from lorakit.serving.answering import kept

ANSWER = ("generate", "--model", "model", "--data", "asked.csv", "--max-new-tokens", "2")
ANSWER += ("--keep-every", "6")


@pytest.fixture(scope="session")
def asked(inputs) -> Path:
    """Rows with quotes and line ends of their own."""
    lines = [f'{i:03d},"say ""{"lamp " * (i % 5)}"" {i}"' for i in range(16)]
    (inputs / "asked.csv").write_text("id,prompt\n" + "\n".join(lines) + "\n")
    return inputs


def read(file: Path) -> list[dict[str, str]]:
    if file.suffix == ".parquet":
        return pyarrow.parquet.read_table(file).to_pylist()
    if file.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(file.read_text(), newline="")))
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_answers_go_on_to_the_same_bytes(warm, asked, tmp_path, how, ending):
    out = f"answers.{ending}"
    argv = (*ANSWER, "--out", out)

    def readable(folder: Path) -> None:
        """What has the final name has every row; what is kept has whole windows."""
        if (folder / out).exists():
            assert [row["id"] for row in read(folder / out)] == [f"{i:03d}" for i in range(16)]
        if (place := kept.place_of(folder / out)).exists():
            windows = [len(answers) for answers in kept.answers_in(place)]
            assert windows == [6, 6, 4][: len(windows)]

    command = Command(
        argv,
        asked,
        readable=readable,
        content=lambda folder: hashes(folder / out),
        again=lambda folder: [(*argv, "--resume")],
    )
    check_faults(command, warm, tmp_path, how, most={"jsonl": 5, "csv": 2, "parquet": 2}[ending])
