"""Is a commit as fast as another? Both take turns, and the ratio comes with its interval.

    python benchmarks/between.py BEFORE --data DATA             # against the working tree
    python benchmarks/between.py BEFORE AFTER --data DATA --pairs 7 --out benchmarks/results/between.jsonl

Training: each side runs its own checkout's `train_speed.py` (lorakit alone, E2E rows), A B A B ...
Serving: a server of each checkout stands ready, and both are asked in turn, A B B A ..., so that a
pair lies within seconds; the clients and the load are those of `serve.py`. Alone on the machine. What is
printed is real tokens/s, after over before: the mean of the pairs' ratios on a logarithmic scale, and its
95 % interval by Student's t.
"""

import argparse
import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import bench
import serve

ROOT = Path(__file__).parents[1]
REST = 0.5
"""Seconds in which the threads of the side that was asked last come to rest."""


def main() -> None:
    """Measure, and print one line for each kind of work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", help="a commit")
    parser.add_argument("after", nargs="?", help="another; the working tree if left out")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds e2e/")
    parser.add_argument("--pairs", type=int, default=7, help="how often each side runs")
    parser.add_argument("--only", default="train,serve", help="train, serve, or both with a comma")
    parser.add_argument(
        "--steps", type=int, default=4, help="of a training run; the first is not timed"
    )
    parser.add_argument("--requests", type=int, default=32, help="of a serving run")
    parser.add_argument(
        "--adapters", default="0,8,32", help="how many are asked in turn, with commas"
    )
    parser.add_argument("--new", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    given = parser.parse_args()
    measures = {"train": _train, "serve": _serve}
    same = bench.session()
    with tempfile.TemporaryDirectory() as scratch:
        trees = [_tree(commit, Path(scratch) / side) for side, commit in _sides(given)]
        try:
            for what in given.only.split(","):
                for kind, pairs in measures[what](trees, given, Path(scratch)):
                    described = summary(f"{what}, {kind}", pairs)
                    print(described["text"], flush=True)
                    whole = {"before": given.before, "after": given.after or "working tree"}
                    bench.append(given.out, [same | whole | described])
        finally:
            for tree in trees:
                if tree != ROOT:
                    _git("worktree", "remove", "--force", str(tree))


def summary(what: str, pairs: list[list[float]]) -> bench.Line:
    """Medians of both sides, and the ratio after / before with its interval.

    >>> summary("x", [[100.0, 101.0], [100.0, 99.0], [100.0, 100.0]])["text"]
    'x: 100.0 -> 100.0 tokens/s, ratio 1.000 (0.975 to 1.025, 3 pairs)'
    """
    from scipy import stats

    logs = [math.log(after / before) for before, after in pairs]
    mean, n = statistics.fmean(logs), len(logs)
    half = stats.t.ppf(0.975, n - 1) * statistics.stdev(logs) / math.sqrt(n) if n > 1 else math.nan
    ratio, low, high = (math.exp(x) for x in (mean, mean - half, mean + half))
    before, after = (statistics.median(side) for side in zip(*pairs, strict=True))
    text = (
        f"{what}: {before:.1f} -> {after:.1f} tokens/s, ratio {ratio:.3f} "
        f"({low:.3f} to {high:.3f}, {n} pairs)"
    )
    return {"what": what, "pairs": pairs, "ratio": ratio, "interval": [low, high], "text": text}


def _sides(given: argparse.Namespace) -> list[tuple[str, str | None]]:
    return [("before", given.before), ("after", given.after)]


def _tree(commit: str | None, folder: Path) -> Path:
    if commit is None:
        return ROOT
    _git("worktree", "add", "--quiet", "--detach", str(folder), commit)
    return folder


def _git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True)


Pairs = list[list[float]]
"""Real tokens/s of both sides, before and after, pair by pair."""


def _train(
    trees: list[Path], given: argparse.Namespace, scratch: Path
) -> Iterator[tuple[str, Pairs]]:
    """Both sides' own `train_speed.py`, each run in processes of its own."""
    yield "e2e", [[_run(tree, given, scratch) for tree in trees] for _ in range(given.pairs)]


def _run(tree: Path, given: argparse.Namespace, scratch: Path) -> float:
    """All tokens over the time of all steps but the first."""
    out = scratch / "run.jsonl"
    out.unlink(missing_ok=True)
    command = [sys.executable, str(tree / "benchmarks" / "train_speed.py"), "--out", str(out)]
    command += ["--data", str(given.data.absolute()), "--rows", "e2e", "--contenders", "lorakit"]
    command += ["--steps", str(given.steps), "--rounds", "1", "--held-out", "0", "--seeds", "0"]
    done = subprocess.run(
        command, env=_environment(tree), cwd=scratch, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"train_speed.py in {tree}:\n{done.stdout}\n{done.stderr}")
    (line,) = [json.loads(line) for line in out.read_text().splitlines()]
    return float(sum(line["tokens"][1:]) / sum(line["seconds"][1:]))


def _serve(
    trees: list[Path], given: argparse.Namespace, scratch: Path
) -> Iterator[tuple[str, Pairs]]:
    """A server of each side at once, asked in turn; who is first changes from pair to pair."""
    bench.measure({"what": "adapters", "scratch": str(scratch)}, serve.__file__)
    asked = serve.prompts(serve.FLIGHT + given.requests)
    command = [sys.executable, "-m", "lorakit"]
    with ExitStack() as stack:
        urls = [
            stack.enter_context(serve.server(f"{scratch}/adapters", command, _environment(tree)))
            for tree in trees
        ]
        for adapters in map(int, given.adapters.split(",")):
            task = {"adapters": adapters, "new": given.new}
            for url in urls:  # adapters come into their slots
                asyncio.run(serve.burst(url, task, asked[: serve.FLIGHT]))
            pairs: Pairs = []
            for turn in range(given.pairs):
                pair = [0.0, 0.0]
                for side in (0, 1) if turn % 2 == 0 else (1, 0):
                    time.sleep(REST)
                    made = asyncio.run(serve.burst(urls[side], task, asked[serve.FLIGHT :]))
                    pair[side] = made["tokens_per_second"]
                pairs.append(pair)
            yield f"{adapters} adapters", pairs


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree / "src")}


if __name__ == "__main__":
    main()
