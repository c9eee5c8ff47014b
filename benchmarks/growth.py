"""How speed and memory grow: over length, rank, tokens of a forward pass, and number of rows.

    python benchmarks/growth.py --out benchmarks/results/growth.jsonl
    python benchmarks/growth.py --forecast --out benchmarks/results/forecast.jsonl

No data is needed: rows are words drawn by a seeded generator, about one token each, the second
half of which bears loss. Every point is a process of its own that goes the way of `lorakit train`
(read, encode, forecast, attach, train), so each also holds the forecast against what came. With
--forecast six settings are measured that span rank, length and batch.

    length    64 … 4,096 tokens a row, 4,096 tokens a step
    rank      4 … 256, rows of 256 tokens, 8 a step (a narrower layer takes its full rank)
    tokens    256 … 4,096 in a step and forward pass, rows of 128 tokens
    rows      1,000 … 100,000 rows of 64 tokens, 16 a step
"""

import argparse
import itertools
import json
import random
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import bench
import tables

# Words that the built-in tokenizer has as one token each.
_TEXT = (
    "time year people way day man thing life child world school state family group country "
    "problem hand part place case week company system program question work number night point "
    "home water room mother area money story fact month right study book eye job word business "
    "issue side kind head house service friend father power hour game line end member law car "
    "city name team minute idea body back face level office door health person art war history"
)
WORDS = _TEXT.split()
RATE = 1e-4


@dataclass(frozen=True)
class Point:
    """One setting: `rows` rows of `length` tokens in the file, `batch_size` of them a step."""

    rank: int = 8
    length: int = 256
    batch_size: int = 8
    rows: int = 0


SWEEPS = {
    "length": {
        n: Point(length=n, batch_size=4096 // n) for n in (64, 128, 256, 512, 1024, 2048, 4096)
    },
    "rank": {r: Point(rank=r) for r in (4, 8, 16, 32, 64, 128, 256)},
    "tokens": {n: Point(length=128, batch_size=n // 128) for n in (256, 512, 1024, 2048, 4096)},
    "rows": {n: Point(length=64, batch_size=16, rows=n) for n in (1_000, 10_000, 100_000)},
}
FORECAST = dict(
    enumerate(
        (
            Point(rank=8, length=64, batch_size=16),
            Point(rank=64, length=128, batch_size=16),
            Point(rank=8, length=256, batch_size=8),
            Point(rank=256, length=256, batch_size=4),
            Point(rank=4, length=1024, batch_size=4),
            Point(rank=16, length=2048, batch_size=1),
        )
    )
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweeps", default=",".join(SWEEPS), help="which, commas between")
    parser.add_argument("--forecast", action="store_true", help="the six settings instead")
    parser.add_argument("--largest", type=int, help="leave out points above this")
    parser.add_argument("--steps", type=int, default=4, help="of a point; the first is not timed")
    parser.add_argument("--rounds", type=int, default=1, help="times that each point is measured")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    options = parser.parse_args()
    chosen = (
        {"forecast": FORECAST} if options.forecast else bench.pick(parser, options.sweeps, SWEEPS)
    )
    session, lines = bench.session(), list[bench.Line]()
    for _, (sweep, points) in itertools.product(range(options.rounds), chosen.items()):
        for value, point in points.items():
            if options.largest and not options.forecast and value > options.largest:
                continue
            given = {"sweep": sweep, "value": value, "steps": options.steps, "model": options.model}
            line = session | bench.measure(given | asdict(point))
            memory = bench.gigabytes(line["peak_memory_bytes"])
            bench.note(f"{sweep} {value}: {tables.speed([line]):.0f} real tokens/s, {memory}")
            bench.append(options.out, [line])
            lines.append(line)
    print(tables.forecast(lines) if options.forecast else tables.growth(lines))


def work(given: bench.Line) -> bench.Line:
    """Train at one point, the way the command goes."""
    from lorakit.config import load_config
    from lorakit.lora import attach
    from lorakit.run.commands.training import prepare
    from lorakit.run.fitting import fit_model
    from lorakit.run.machine import peak_memory
    from lorakit.training import Observers, Schedule

    count = given["rows"] or given["steps"] * given["batch_size"]
    events: list[bench.Line] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        write_rows(file, count, given["length"])
        config = load_config(
            None,
            {
                "data": (str(file),),
                "template": "raw",
                "eval_share": 0.0,
                "model": given["model"],
                "rank": given["rank"],
                "rank_pattern": narrower(given["model"], given["rank"]),
                "batch_size": given["batch_size"],
                "batch_tokens": given["batch_size"] * given["length"] + given["batch_size"],
                "max_steps": given["steps"],
                "learning_rate": RATE,
            },
        )
        ready = prepare(config)
    model = ready.session.model
    attach(model, ready.plan, seed=config.train.seed)
    fitted = fit_model(
        model,
        ready.data.train,
        ready.data.eval,
        Schedule(ready.steps, ready.learning_rate, config.train),
        recompute=ready.estimate.recompute,
        observers=Observers(
            report=lambda event: events.append(event) if event["kind"] == "train" else None
        ),
    )
    return given | {
        "tokens": [event["tokens"] for event in events],
        "seconds": [event["seconds"] for event in events],
        "all_seconds": fitted.seconds,
        "peak_memory_bytes": peak_memory(model.device),
        "mean_length": float(ready.data.train.lengths.mean()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "forecast": ready.forecast.to_dict(),
        **bench.surroundings(model.device),
    }


def narrower(model: str, rank: int) -> dict[str, int]:
    """The layers that cannot have this rank, by name, with the largest that they can."""
    from lorakit.lora import LoraSpec, plan
    from lorakit.models import empty_model

    targets = plan(empty_model(model), LoraSpec(rank=1)).targets
    sides = {
        target.path.rsplit(".", 1)[-1]: min(
            target.geometry.in_features, target.geometry.out_features
        )
        for target in targets
    }
    return {name: side for name, side in sides.items() if side < rank}


def write_rows(file: Path, count: int, length: int) -> None:
    """Rows of about `length` tokens; one by one, so that making them takes no memory."""
    draw = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(count):
            words = draw.choices(WORDS, k=length - 1)
            half = len(words) // 2
            row = {"prompt": " ".join(words[:half]), "completion": " " + " ".join(words[half:])}
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    bench.run(main, work)
