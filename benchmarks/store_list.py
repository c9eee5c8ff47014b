"""How long `lorakit adapters list` takes over ten thousand adapters.

    python benchmarks/store_list.py --out benchmarks/results/store_list.jsonl

The index is filled with rows such as `add` writes, in one transaction and without the folders,
which listing does not open. Measured are `Store.list()` in this process and the whole command in a
process of its own, start-up included, as a table and as JSON.
"""

import argparse
import hashlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lorakit.adapters.store import Store, StoredFile, Summary
from lorakit.adapters.store.contents import KEPT, id_of
from lorakit.adapters.store.index import put_event, put_version


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch) / "store")
        fill(store, options.adapters)
        command = [sys.executable, "-m", "lorakit", "adapters", "list", "--store", str(store.path)]
        measured = {
            "adapters": options.adapters,
            "index_bytes": store.index.path.stat().st_size,
            "call_seconds": timed(lambda: len(store.list()), options),
            "table_seconds": timed(lambda: rows_of(command) - 1, options),
            "json_seconds": timed(
                lambda: len(json.loads(output_of([*command, "--json"]))), options
            ),
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
    line = json.dumps(measured)
    print(line)
    if options.out:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def fill(store: Store, number: int) -> None:
    """Names with one version each, told apart by their hashes."""
    with store.index.write() as db:
        lines = store._lines(db)
        for n in range(number):
            digest = hashlib.sha256(str(n).encode()).hexdigest()
            files = tuple(StoredFile(name, 10_000 + n, digest) for name in KEPT)
            summary = Summary(
                210,
                (8, 8),
                2_442_240,
                {"name": "smollm2-135m", "weights_sha256": digest},
                digest,
                {"train_loss": 1.2, "eval_loss": 1.3, "scores.exact_match": 0.75},
            )
            put_version(db, id_of(files), store.clock(), files, summary)
            line, _ = lines.point(f"task-{n:05d}", id_of(files))
            put_event(db, store.clock(), line.line, line.name, "add", 1, id_of(files))


def timed(count: Callable[[], int], options: argparse.Namespace) -> float:
    """The median over the rounds, in seconds; each has to list every adapter."""
    seconds = []
    for _ in range(options.rounds):
        started = time.perf_counter()
        found = count()
        seconds.append(time.perf_counter() - started)
        assert found == options.adapters, found
    return statistics.median(seconds)


def output_of(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def rows_of(command: list[str]) -> int:
    return len(output_of(command).splitlines())


if __name__ == "__main__":
    main()
