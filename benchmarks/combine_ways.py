"""Two tasks, two adapters: every way to combine them beside each alone, and beside one trained on both.

    python benchmarks/combine_ways.py --data DATA --place PLACE --out benchmarks/results/combine_ways.jsonl

BANKING77 (DATA/banking77/train.csv and test.csv) gives two tasks of --intents labels each, which share
none. Each adapter is trained on the training rows of its own labels; --steps each, rank 8, the default
rate. The one on both has as many steps as each, half the work of the two. All are measured on the same
held-out rows, of test.csv. What PLACE holds already is not done again, and --only does one part.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPT, COMPLETION = r"{text}\n", "{category}"
PARTS = ("a", "b", "both", "combine", "eval")


def lorakit(place: Path, *words: object) -> None:
    subprocess.run([sys.executable, "-m", "lorakit", *map(str, words)], cwd=place, check=True)


def rows_of(file: Path, labels: list[str], most: int) -> list[dict[str, str]]:
    """The first rows of each label, so many in all."""
    with file.open(encoding="utf-8", newline="") as opened:
        found = [row for row in csv.DictReader(opened) if row["category"] in labels]
    kept: list[dict[str, str]] = []
    for label in labels:
        kept += [row for row in found if row["category"] == label][: most // len(labels)]
    return kept


def make(data: Path, place: Path, intents: int, rows: int, held: int) -> None:
    labels = json.loads((data / "banking77" / "categories.json").read_text())
    for number, name in enumerate("ab"):
        own = labels[number * intents : (number + 1) * intents]
        for file, split, most in ((name, "train", rows), (f"{name}-held", "test", held)):
            with (place / f"{file}.csv").open("w", encoding="utf-8", newline="") as opened:
                writer = csv.DictWriter(opened, ("text", "category"))
                writer.writeheader()
                writer.writerows(rows_of(data / "banking77" / f"{split}.csv", own, most))


def train(place: Path, name: str, steps: int, model: str) -> None:
    if (place / f"run-{name}" / "config.yaml").exists():  # interrupted
        lorakit(place, "train", "--resume", "--out", f"run-{name}")
        return
    files = ["a", "b"] if name == "both" else [name]
    lorakit(
        place,
        *("train", "--model", model, "--data", ",".join(f"{f}.csv" for f in files)),
        *("--eval-data", ",".join(f"{f}-held.csv" for f in files)),
        *("--prompt", PROMPT, "--completion", COMPLETION, "--rank", 8, "--max-steps", steps),
        *("--batch-size", 8, "--eval-every", 30, "--samples", 0, "--out", f"run-{name}"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--place", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--intents", type=int, default=6)
    parser.add_argument("--rows", type=int, default=360)
    parser.add_argument("--held", type=int, default=60)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    place = options.place.resolve()
    place.mkdir(parents=True, exist_ok=True)
    make(options.data, place, options.intents, options.rows, options.held)
    for part in PARTS if options.only is None else (options.only,):
        began = time.perf_counter()
        if part in ("a", "b", "both"):
            if not (place / f"run-{part}" / "adapter").exists():
                train(place, part, options.steps, options.model)
        elif part == "combine":
            combine(place)
        else:
            measure_both(place)
        print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)
    if (place / "combined.json").exists() and (place / "both.json").exists():
        told = {
            name: getattr(options, name) for name in ("model", "intents", "rows", "held", "steps")
        } | {n: json.loads((place / f"{n}.json").read_text()) for n in ("combined", "both")}
        print(json.dumps(told, indent=2))
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(json.dumps(told) + "\n")


def combine(place: Path) -> None:
    import os

    import lorakit as package

    os.chdir(place)
    tried = package.combine(
        ["run-a/adapter", "run-b/adapter"],
        data=["a.csv", "b.csv"],
        out=f"combined-{time.time():.0f}",
    )
    found: dict[str, Any] = {
        way.name: {"measures": way.measures, "scores": way.scores, "losses": way.losses}
        for way in (*tried.alone, *tried.ways)
    }
    found |= {"best": tried.best.name, "rows": tried.rows, "notes": tried.notes}
    (place / "combined.json").write_text(json.dumps(found))


def measure_both(place: Path) -> None:
    import lorakit as package

    found = []
    for name in "ab":
        result = package.evaluate(
            *(None, place / f"{name}-held.csv"),
            adapter=place / "run-both" / "adapter",
            prompt=PROMPT,
            completion=COMPLETION,
        )
        found.append({"scores": result["scores"], "loss": result["eval_loss"]})
    (place / "both.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
