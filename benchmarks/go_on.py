"""Does going on from a trained adapter keep what it knows, and learn what is new?

    python benchmarks/go_on.py DATA_FOLDER           # 20 pairs of a parent and new rows

DATA_FOLDER holds banking77, snips, e2e and gsm8k as public files (docs/measured.md names them).
Ten parents are trained on old rows by `lorakit.train` and saved. Each is loaded again and goes on
twice by the defaults: `load_adapter(trainable=True)` and `lorakit.train`, as `lorakit train --from` does.

  same   the new rows are of the parent's kind. Reported: the parent's held-out rows by the parent
         and by the continued adapter. Wanted: the loss is above the parent's by no more than the
         half width of the parent's own 95 % bootstrap interval.
  other  the new rows are of other intents or another task. Going on takes old and new rows together,
         for half of the steps of a fresh run on the same rows. Wanted: its held-out loss on rows of both
         kinds, in the proportion of the training rows, is at most 3 % above the fresh run's. It is measured
         on rows that chose no step and no rate, with the paired interval of the difference.

One JSON line a pair is appended to benchmarks/results/go_on.jsonl when the pair has ended: a stopped
benchmark goes on where it was, and with --keep FOLDER within a pair: parents and fresh runs are kept there. A table with ratios is printed at the end.
"""

import argparse
import csv
import gzip
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bench
import go_on_table
import numpy as np
import torch

import lorakit
from lorakit.data import load_data
from lorakit.data.given import as_source
from lorakit.evaluation.bootstrap import bootstrap_difference, bootstrap_mean
from lorakit.evaluation.likelihood import row_losses
from lorakit.training import FitResult

FILE = "go_on.jsonl"
BATCH, HELD_OUT, JUDGED, SEED = 8, 24, 96, 0
MOST_CHARACTERS = {"banking77": 80, "snips": 130, "e2e": 220, "gsm8k": 300}
Row = dict[str, str]


@dataclass(frozen=True)
class Kind:
    """Rows of one kind: where they come from and how many a parent is trained on."""

    data: str
    group: int
    rows: int


@dataclass(frozen=True)
class Pair:
    """A parent, and the rows that it goes on with."""

    name: str
    old: Kind
    new: Kind

    @property
    def same(self) -> bool:
        """Whether the new rows are of the parent's kind."""
        return (self.old.data, self.old.group) == (self.new.data, self.new.group)


def pairs() -> Iterator[Pair]:
    """The twenty pairs, short rows first; two in a row share their parent."""
    for data, groups, rows in (("banking77", 5, 192), ("snips", 3, 128)):
        for group in range(groups):
            old, other = Kind(data, group, rows), (group + (4 if groups == 5 else 1))
            yield Pair(f"{data} {group}, more of it", old, Kind(data, group, 24))
            yield Pair(f"{data} {group}, other intents", old, Kind(data, other % 9, 24))
    e2e, gsm8k = Kind("e2e", 0, 96), Kind("gsm8k", 0, 64)
    yield Pair("e2e, more of it", e2e, Kind("e2e", 0, 24))
    yield Pair("e2e, then banking77", e2e, Kind("banking77", 0, 24))
    yield Pair("gsm8k, more of it", gsm8k, Kind("gsm8k", 0, 16))
    yield Pair("gsm8k, then snips", gsm8k, Kind("snips", 1, 16))


def main() -> None:
    """Measure the pairs that are not in the results yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="the folder with banking77, snips, e2e and gsm8k")
    parser.add_argument("--results", type=Path, default=bench.RESULTS / FILE)
    parser.add_argument("--pairs", help="only those whose name contains this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for parents and fresh runs")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model, tokenizer = lorakit.load_model(lorakit.ModelSpec(dtype="float32"))
    common = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python benchmarks/go_on.py DATA_FOLDER",
        **bench.surroundings(model.device),
    }
    work: Work | None = None
    for pair in pairs():
        done = {line["pair"] for line in bench.read(asked.results)}
        if pair.name in done or (asked.pairs and asked.pairs not in pair.name):
            continue
        began = time.perf_counter()
        if work is None or work.kind != pair.old:
            work = Work(model, tokenizer, asked.data, pair.old, asked.keep)
        line = work.same(pair) if pair.same else work.other(pair)
        line = {"pair": pair.name, "same": pair.same, **line}
        bench.append(asked.results, [line | {"seconds": time.perf_counter() - began} | common])
        print(json.dumps(line), flush=True)
    print(go_on_table.table(bench.read(asked.results)))


class Work:
    """One loaded base, a parent trained on it, and how it goes on."""

    def __init__(
        self, model: Any, tokenizer: Any, data: Path, kind: Kind, keep: Path | None = None
    ) -> None:
        self.model, self.tokenizer, self.data, self.kind = model, tokenizer, data, kind
        self._temporary = tempfile.TemporaryDirectory()
        self._folder = keep or Path(self._temporary.name)
        rows = rows_of(data, kind)
        self.old, self.held = rows[: kind.rows], rows[-HELD_OUT:]
        self.more = rows[kind.rows : -HELD_OUT]
        self._adapter = self._folder / f"{kind.data}-{kind.group}"
        self.parent_steps = self.fresh(self.old, self.held, self._adapter)

    def same(self, pair: Pair) -> dict[str, Any]:
        """New rows of the parent's kind, and the parent's held-out rows before and after."""
        new = self.more[: pair.new.rows]
        # The new rows bring a few held-out rows of their own, as a user's would.
        own = self.more[pair.new.rows :][: pair.new.rows // 3]
        self._load()
        before_S, tokens_S = self.losses(self.held)
        went_on = self._train(new, own)
        after_S, _ = self.losses(self.held)
        weight = tokens_S.mean()
        parent = bootstrap_mean(before_S / weight, generator=np.random.default_rng(0))
        change = bootstrap_difference(
            after_S / weight, before_S / weight, generator=np.random.default_rng(0)
        )
        return {
            "parent_steps": self.parent_steps,
            "steps": went_on.steps,
            "kept": went_on.best_step,
            "parent_loss": parent.mean,
            "half_width": (parent.high - parent.low) / 2,
            "loss": float(after_S.mean() / weight),
            "change_low": change.low,
            "change_high": change.high,
            "new_loss_before": went_on.eval_loss_before,
            "new_loss": went_on.eval_loss,
            "notes": list(went_on.notes),
        }

    def other(self, pair: Pair) -> dict[str, Any]:
        """Old and new rows together, by a fresh run and from the parent in half of its steps."""
        new = rows_of(self.data, pair.new)
        both = [*self.old, *new[: pair.new.rows]]
        share = pair.new.rows / len(both)
        news = max(2, round(share * HELD_OUT))
        held = [*self.held[: HELD_OUT - news], *new[-news:]]
        judged = round(share * JUDGED)
        judging = [*self.more[: JUDGED - judged], *new[pair.new.rows :][:judged]]
        steps = math.ceil(len(both) / BATCH)
        name = pair.name.replace(",", "").replace(" ", "-")
        fresh_steps = self.fresh(both, held, self._folder / name)
        fresh_S, tokens_S = self.losses(judging)
        self._load()
        before_S, _ = self.losses(judging)
        went_on = self._train(both, held, max_steps=math.ceil(steps / 2))
        after_S, _ = self.losses(judging)
        weight = tokens_S.mean()
        change = bootstrap_difference(
            after_S / weight, fresh_S / weight, generator=np.random.default_rng(0)
        )
        return {
            "parent_steps": self.parent_steps,
            "steps": went_on.steps,
            "kept": went_on.best_step,
            "fresh_steps": fresh_steps,
            "parent_loss": float(before_S.mean() / weight),
            "loss": float(after_S.mean() / weight),
            "fresh_loss": float(fresh_S.mean() / weight),
            "change_low": change.low,
            "change_high": change.high,
            "held_out_loss": went_on.eval_loss,
            "notes": list(went_on.notes),
        }

    def fresh(self, rows: list[Row], held: list[Row], folder: Path) -> int:
        """A fresh adapter by the defaults, measured at its end alone; its steps.

        It is in the model afterwards, and kept in the folder; one that is there is loaded.
        """
        lorakit.detach(self.model)
        steps = folder.with_name(f"{folder.name}.steps")
        if steps.is_file():
            lorakit.load_adapter(self.model, folder)
            return int(steps.read_text())
        lorakit.attach(self.model, lorakit.LoraSpec(), seed=SEED)
        trained = self._train(rows, held, eval_every=1_000)
        lorakit.save_adapter(self.model, folder, overwrite=True)
        steps.write_text(str(trained.steps))
        return trained.steps

    def _load(self) -> None:
        lorakit.detach(self.model)
        lorakit.load_adapter(self.model, self._adapter, trainable=True)

    def _train(self, rows: list[Row], held: list[Row], **options: Any) -> FitResult:
        return lorakit.train(
            *(self.model, self.tokenizer, rows),
            eval_data=held,
            **{"batch_size": BATCH, "template": "raw", "seed": SEED, **options},
        )

    def losses(self, rows: list[Row]) -> tuple[Any, Any]:
        """Nats and supervised tokens of each row, in its order."""
        spec = lorakit.DataSpec(data=(as_source(rows),), eval_share=0.0, template="raw")
        table = load_data(spec, self.tokenizer).train
        return row_losses(self.model, table, 4096)


def rows_of(data: Path, kind: Kind) -> list[Row]:
    """All rows of a kind in a seeded order; banking77 by 8 intents, snips by 2."""
    match kind.data:
        case "banking77":
            with (data / "banking77" / "train.csv").open(encoding="utf-8") as file:
                read = list(csv.DictReader(file))
            group = _group({row["category"] for row in read}, 8, kind.group)
            rows = [(r["text"], r["category"]) for r in read if r["category"] in group]
        case "snips":
            lines = (data / "snips" / "train.jsonl").read_text(encoding="utf-8").splitlines()
            read = [json.loads(line) for line in lines]
            group = _group({row["intent"] for row in read}, 2, kind.group)
            rows = [(r["text"], json.dumps(r["slots"])) for r in read if r["intent"] in group]
        case "e2e":
            rows = [
                (r["context"], r["completion"]) for r in _zipped(data / "e2e" / "train.jsonl.gz")
            ]
            rows = rows[kind.group :: 2]
        case _:
            read = list(_zipped(data / "gsm8k" / "train.jsonl.gz"))
            rows = [(r["question"], r["answer"]) for r in read]
            rows = sorted(rows, key=lambda row: len(row[0]) + len(row[1]))[:400]
    random.Random(kind.group).shuffle(rows)
    short = [(p, c) for p, c in rows if len(p) + len(c) < MOST_CHARACTERS[kind.data]][:400]
    return [{"prompt": f"{prompt}\n", "completion": completion} for prompt, completion in short]


def _group(names: set[str], size: int, number: int) -> set[str]:
    ordered = sorted(names)
    random.Random(0).shuffle(ordered)
    return set(ordered[number * size : (number + 1) * size])


def _zipped(path: Path) -> Iterator[Any]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


if __name__ == "__main__":
    main()
