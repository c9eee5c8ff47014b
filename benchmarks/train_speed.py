"""Training speed: lorakit beside its peers, interleaved, each run in a process of its own.

    python benchmarks/train_speed.py --data DATA --rows e2e,gsm8k,packed --rounds 3

Every round starts each contender anew (A B A B …) on the same rows in the same order, with the
round's seed; medians over the runs are printed, without each run's first step: real tokens/s
(padding does not count), the ratio to lorakit, the fraction of the limit (F · tokens/s over the matmul rate
measured in lorakit's process at the model's own shapes), the largest resident size, and the loss
on held-out rows after the last step.

    peft           a careful hand-written loop around peft, in the number format in which this
                   machine is fastest (benchmarks/peft_loop.py)
    trl            TRL's SFTTrainer tuned (benchmarks/trl_loop.py)
    trl-grouped    the same on steps of rows of like length, as its own sampler forms them
    trl-flat       the same with its own padding-free batches
    …-split        lorakit, peft and trl with several forward passes a step, over a few rows of
                   like length each: less padding and memory
    full           the careful loop without an adapter: every weight is trained
    lorakit-full   lorakit's loop without an adapter
    lorakit-plain  lorakit without the compiled kernels (LORAKIT_KERNELS=plain)
    lorakit-dora   lorakit with --dora
    peft-bf16      peft in bfloat16 whatever the machine
    trl-defaults   TRL as it comes
"""

import argparse
import itertools
from pathlib import Path

import bench
import tables

DEFAULT = "lorakit,peft,trl,trl-grouped,lorakit-split,peft-split,trl-split"


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
    parser.add_argument("--held-out", type=int, default=32, help="held-out rows; 0 for no loss")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    options = parser.parse_args()
    kinds = bench.pick(parser, options.rows, ROWS)
    names = bench.pick(parser, options.contenders, CONTENDERS)
    if "lorakit" not in names:
        parser.error("lorakit must be among the contenders: the others are held against it")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    session, lines = bench.session(), list[bench.Line]()
    for kind in kinds:
        taking_part = list(names)
        if (options.batch_size or ROWS[kind].batch_size) == 1:
            taking_part = [name for name in names if not CONTENDERS[name].needs_rows]
            bench.note(f"{kind}: one row a step, so nothing to group or to split")
        for turn, name in itertools.product(range(options.rounds), taking_part):
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
                }
            )
            bench.note(f"{kind} {turn + 1}/{options.rounds} {name}: {tables.speed([line]):.1f}/s")
            bench.append(options.out, [line])
            lines.append(line)
    print(tables.contenders(lines), tables.goals(lines), sep="\n\n")


def work(given: bench.Line) -> bench.Line:
    import contenders

    return contenders.work(given)


if __name__ == "__main__":
    bench.run(main, work)
