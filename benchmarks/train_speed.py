"""Training speed: lorakit beside its peers, interleaved, each run in a process of its own.

    python benchmarks/train_speed.py --data DATA --rows e2e,gsm8k,packed --rounds 3

Every round starts each contender anew (A B A B …) on the same rows in the same order, with the
round's seed; medians over all steps but each run's first are printed: real tokens/s (padding does
not count), the ratio to lorakit, the fraction of the limit (F · tokens/s over the matmul rate
measured in lorakit's process at the model's own shapes), the largest resident size, and the loss
on held-out rows after the last step.

    peft           a careful hand-written loop around peft, in the number format in which this
                   machine is fastest (benchmarks/peft_loop.py)
    trl            TRL's SFTTrainer tuned (benchmarks/trl_loop.py), rows of a step sorted
    trl-grouped    the same, with its own grouping of rows of like length
    trl-flat       the same, with its own padding-free batches
    full           the careful loop without an adapter: every weight is trained
    lorakit-full   lorakit's loop without an adapter
    peft-bf16      peft in bfloat16 whatever the machine
    trl-defaults   TRL as it comes
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import bench
import tables

DEFAULT = "lorakit,peft,trl,trl-grouped"


def main() -> None:
    from contenders import CONTENDERS, ROWS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds e2e/, gsm8k/")
    parser.add_argument("--rows", default=",".join(ROWS), help="kinds of rows, commas between")
    parser.add_argument("--contenders", default=DEFAULT, help="who trains, in the order of a round")
    parser.add_argument("--steps", type=int, default=8, help="of a run; the first is not timed")
    parser.add_argument("--rounds", type=int, default=3, help="times that each contender runs")
    parser.add_argument("--seeds", default="0,1,2", help="seeds that the rounds take in turn")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch-size", type=int, help="rows of a step [16 e2e, 8 gsm8k, 1 packed]")
    parser.add_argument(
        "--forward-rows", type=int, help="peers' rows of a forward pass [all of a step]"
    )
    parser.add_argument("--held-out", type=int, default=32, help="held-out rows; 0 for no loss")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    options = parser.parse_args()
    kinds = _chosen(parser, options.rows, ROWS)
    names = _chosen(parser, options.contenders, CONTENDERS)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    session, lines = bench.session(), list[bench.Line]()
    for kind in kinds:
        for turn, name in itertools.product(range(options.rounds), names):
            line = session | bench.measure(
                {
                    "rows": kind,
                    "contender": name,
                    "seed": seeds[turn % len(seeds)],
                    # A seed's loss comes out the same in each round.
                    "held_out": options.held_out if turn < len(seeds) else 0,
                    "data": str(options.data),
                    "steps": options.steps,
                    "rank": options.rank,
                    "batch_size": options.batch_size,
                    "forward_rows": options.forward_rows,
                }
            )
            bench.note(f"{kind} {turn + 1}/{options.rounds} {name}: {tables.speed([line]):.1f}/s")
            bench.append(options.out, [line])
            lines.append(line)
    print(tables.contenders(lines), tables.goals(lines), sep="\n\n")


def _chosen(parser: argparse.ArgumentParser, text: str, known: Any) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            parser.error(f"{name!r} is not one of {', '.join(known)}")
    return names


def work(given: bench.Line) -> bench.Line:
    import contenders

    return contenders.work(given)


if __name__ == "__main__":
    bench.run(main, work)
