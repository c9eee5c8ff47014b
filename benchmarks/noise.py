"""How often `rank` and `compare` say a word that is wrong, on rows where the truth is known or measured.

    python benchmarks/noise.py --out benchmarks/results/noise.jsonl     # 50 seeds of each, about 20 minutes
    python benchmarks/noise.py --try                                    # 2 seeds, nothing kept
    python benchmarks/tables.py --write                                 # the table in docs/rank.md

The whole protocols, in this process, on a model of two layers with random weights. Every repetition draws
rows and seeds anew.

    identical      arms that differ by nothing but their seeds. `compare`: two LoRA arms of one rank.
                   `rank`: every candidate is trained at rank 4, with a seed of its own
    shuffled       labels that have nothing to do with their rows: what is learnt is their frequencies
    8 rows         too few for anything (`rank` with --allow-short)
    clear          a difference that has to be seen. `compare`: 40 steps of an arm whose learning rate is a
                   hundredth. `rank`: rank 1 through a single module against keys learnt by heart

A word is wrong that says better or worse of equals, or the wrong way round, or equal of what differs by
more than the margin. Of identical arms the truth is 0. Elsewhere it is the mean of all repetitions; where
their interval holds 0, better and worse both count as wrong.
"""

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import bench
import numpy as np

ROOT = Path(__file__).parents[1]
WORDS = ("better", "worse", "equal", "cannot be told")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=50, help="repetitions of each")
    parser.add_argument("--only", default=",".join(CASES), help="which, commas between")
    parser.add_argument("--try", action="store_true", dest="tries", help="2 seeds, nothing kept")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    given = parser.parse_args()
    cases = bench.pick(parser, given.only, CASES)
    sys.path.insert(0, str(ROOT / "tests"))
    known = bench.read(given.out) if given.out else []
    done = {(line["case"], line["seed"]) for line in known}
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        base = base_model(Path(scratch))
        for name, case in cases.items():
            for seed in range(2 if given.tries else given.seeds):
                if (name, seed) in done:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    said = case(base, Path(folder), seed)
                made = [bench.session() | {"case": name, "seed": seed} | each for each in said]
                lines += made
                bench.append(None if given.tries else given.out, made)
                bench.note(f"{name}, seed {seed}: {', '.join(each['word'] for each in said)}")
    print(table([*known, *lines]))


def base_model(folder: Path) -> str:
    """A model of two layers with random weights, and a tokenizer of bytes."""
    from families import saved

    return str(saved(folder / "tiny"))


# --- the rows


def easy(draw: random.Random, count: int) -> list[tuple[str, str]]:
    """A word of two letters -> its second letter."""
    return [(f"say {a}{b}", b) for a, b in (draw.choices(LETTERS[:8], k=2) for _ in range(count))]


def shuffled(draw: random.Random, count: int) -> list[tuple[str, str]]:
    """The same with the answers of other rows."""
    rows = easy(draw, count)
    answers = [answer for _, answer in rows]
    draw.shuffle(answers)
    return [(prompt, answer) for (prompt, _), answer in zip(rows, answers, strict=True)]


def keys(draw: random.Random, count: int) -> list[tuple[str, str]]:
    """Random keys -> random values, to be learnt by heart."""
    made = {"".join(draw.choices(LETTERS, k=4)) for _ in range(count)}
    return [(key, "".join(draw.choices(LETTERS, k=3))) for key in sorted(made)]


def write(file: Path, rows: Sequence[tuple[str, str]]) -> str:
    text = "".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in rows)
    file.write_text(text, encoding="utf-8")
    return str(file)


COMMON = {
    "dtype": "float32", "template": "raw", "batch_size": 4, "samples": 0, "max_new_tokens": 2,
}  # fmt: skip


def options(base: str, folder: Path, seed: int, rows: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Options of a command: rows that are trained on, and as many held out as there are after 60."""
    draw = random.Random(seed)
    train, held = list(rows[:60]), list(rows[60:])
    draw.shuffle(train)
    made = COMMON | {"model": base, "out": str(folder / "run"), "seed": 1000 * seed}
    made |= {"data": (write(folder / "rows.jsonl", train),)}
    return made | {"eval_data": (write(folder / "held.jsonl", held or train),)}


# --- compare


def compared(
    base: str,
    folder: Path,
    seed: int,
    rows: Sequence[tuple[str, str]],
    arms: Any = None,
    **more: Any,
) -> list[bench.Line]:
    from lorakit.comparing import command
    from lorakit.comparing.spec import FORM
    from lorakit.experiments import in_process

    given = options(base, folder, seed, rows) | {
        "budget": "8 steps", "rates": 1, "seeds": 3, "evaluations": 1, "ranks": (4,),
    }  # fmt: skip
    general = write(folder / "general.jsonl", easy(random.Random(seed + 5000), 24))
    with mock.patch.object(command, "write_compare_report"):
        made = command.run_compare(
            FORM.read(None, given | {"general_data": (general,)} | more),
            arms=arms,
            runner=lambda root, tell: in_process(root, report=tell),
        )
    between = made["differences"][0]
    return [
        line("loss", between["loss"]["mean"], between["verdict"]),
        line("forgetting", between["kl"]["mean"], between["kl"]["verdict"]),
    ]


def line(measure: str, mean: float, verdict: Any) -> bench.Line:
    return {
        "measure": measure, "mean": mean, "word": verdict["word"], "margin": verdict["margin"],
    }  # fmt: skip


def two_arms(second: int = 500_009) -> Any:
    """LoRA of rank 4 twice, from other initialisations."""
    from lorakit.comparing.methods import Arm, Method
    from lorakit.lora import LoraSpec

    lora = LoraSpec(rank=4)
    return (Arm("one", Method("lora", lora)), Arm("other", Method("lora", lora, start=second)))


def compare_identical(base: str, folder: Path, seed: int) -> list[bench.Line]:
    return compared(base, folder, seed, easy(random.Random(seed), 100), two_arms())


def compare_shuffled(base: str, folder: Path, seed: int) -> list[bench.Line]:
    return compared(base, folder, seed, shuffled(random.Random(seed), 100))


def compare_eight(base: str, folder: Path, seed: int) -> list[bench.Line]:
    return compared(base, folder, seed, easy(random.Random(seed), 68))


def compare_clear(base: str, folder: Path, seed: int) -> list[bench.Line]:
    """Full fine-tuning against a rank of 1 in a single module."""
    more = {"ranks": (1,), "targets": ("k_proj",), "layers": "1", "budget": "30 steps"}
    return compared(base, folder, seed, easy(random.Random(seed), 100), **more)


# --- rank


def ranked(
    base: str,
    folder: Path,
    seed: int,
    rows: Sequence[tuple[str, str]],
    change: Callable[[Any], Any] | None = None,
    **more: Any,
) -> list[bench.Line]:
    from lorakit.experiments import in_process
    from lorakit.ranking import command, workers
    from lorakit.ranking.spec import FORM

    given = options(base, folder, seed, rows)
    given |= {"max_rank": 8, "max_steps": 40, "learning_rate": 0.005, "noise_seeds": 4}

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(command, "write_rank_report"))
        if change is not None:
            stack.enter_context(mock.patch.object(workers, "train", change(workers.train)))
        made = command.run_rank(
            FORM.read(None, given | more), runner=lambda root, tell: in_process(root, report=tell)
        )
    return [line(f"rank {rank}", gap["mean"], gap["verdict"]) for rank, gap in made["gaps"].items()]


def of_one_rank(train: Callable[..., Any]) -> Callable[..., Any]:
    """The worker that trains, with rank 4 in the place of every rank, and a seed of its own for each."""

    def of_four(spec: Any, *rest: Any) -> Any:
        runs = [
            run | {"rank": 4, "seed": run["seed"] + (17 * run["rank"] if spec["save"] else 0)}
            for run in spec["runs"]
        ]
        return train({**spec, "runs": runs}, *rest)

    return of_four


def rank_identical(base: str, folder: Path, seed: int) -> list[bench.Line]:
    return ranked(base, folder, seed, easy(random.Random(seed), 100), of_one_rank)


def rank_shuffled(base: str, folder: Path, seed: int) -> list[bench.Line]:
    return ranked(base, folder, seed, shuffled(random.Random(seed), 100))


def rank_eight(base: str, folder: Path, seed: int) -> list[bench.Line]:
    return ranked(base, folder, seed, easy(random.Random(seed), 68), allow_short=True)


def rank_clear(base: str, folder: Path, seed: int) -> list[bench.Line]:
    """Keys by heart through one module, at two ranks that are far apart: rank 1 cannot hold them."""
    more = {"targets": ("down_proj",), "layers": "1", "max_rank": 16, "max_steps": 150}
    more |= {"batch_size": 30, "learning_rate": 0.02}
    return ranked(base, folder, seed, keys(random.Random(seed), 60), **more)


CASES: dict[str, Callable[[str, Path, int], list[bench.Line]]] = {
    "compare: identical arms": compare_identical,
    "compare: shuffled labels": compare_shuffled,
    "compare: 8 rows": compare_eight,
    "compare: clear difference": compare_clear,
    "rank: identical arms": rank_identical,
    "rank: shuffled labels": rank_shuffled,
    "rank: 8 rows": rank_eight,
    "rank: clear difference": rank_clear,
}


# --- the table


def table(lines: Sequence[bench.Line]) -> str:
    """How often each word was said, and wrongly, by case and measure."""
    rows = []
    for case in CASES:
        own = [each for each in lines if each["case"] == case]
        for measure in sorted({each["measure"] for each in own}):
            said = [each for each in own if each["measure"] == measure]
            counts = Counter(each["word"] for each in said)
            low, high = truth(case, [each["mean"] for each in said])
            rows.append(
                [
                    *(case, measure, str(len(said)), f"{low:+.4f} to {high:+.4f}"),
                    *(str(counts[word]) for word in WORDS),
                    *(str(wrong(said, low, high, words)) for words in (WORDS[:2], WORDS[2:3])),
                ]
            )
    head = ["rows", "measure", "searches or comparisons", "true difference", *WORDS]
    head += ["better or worse, wrongly", "equal, wrongly"]
    return bench.table(head, rows) if rows else ""


def truth(case: str, means: Sequence[float]) -> tuple[float, float]:
    """Between which the true difference lies: 0 where arms are identical, else the mean ± 2.5 errors."""
    if "identical" in case or len(means) < 2:
        return 0.0, 0.0
    error = float(np.std(means, ddof=1)) / len(means) ** 0.5
    middle = float(np.mean(means))
    return middle - 2.5 * error, middle + 2.5 * error


def wrong(said: Sequence[bench.Line], low: float, high: float, words: Sequence[str]) -> int:
    """How many of these words were wrong."""
    count = 0
    for each in said:
        if each["word"] in words[:2] and each["word"] != "equal":
            count += not (high < 0 if each["mean"] < 0 else low > 0)
        elif each["word"] == "equal" and "equal" in words:
            count += low > each["margin"] or high < -each["margin"]
    return count


if __name__ == "__main__":
    main()
