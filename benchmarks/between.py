"""Is a commit as fast as another? Both take turns, and the ratio comes with its interval.

    python benchmarks/between.py BEFORE --data DATA             # against the working tree
    python benchmarks/between.py BEFORE AFTER --data DATA --pairs 7 --out benchmarks/results/between.jsonl

Each side runs its own checkout's `train_speed.py` (lorakit alone, E2E rows) and `serve.py` (lorakit
alone), A B A B ..., alone on the machine. What is printed is real tokens/s, after over before: the mean of
the pairs' ratios on a logarithmic scale, and its 95 % interval by Student's t.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import bench

ROOT = Path(__file__).parents[1]


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
    parser.add_argument("--new", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    given = parser.parse_args()
    commands = {
        "train": [
            *("train_speed.py", "--data", str(given.data.absolute()), "--rows", "e2e"),
            *("--contenders", "lorakit", "--steps", str(given.steps), "--rounds", "1"),
            *("--held-out", "0", "--seeds", "0"),
        ],
        "serve": [
            *("serve.py", "--contenders", "lorakit", "--rounds", "1"),
            *("--requests", str(given.requests), "--new", str(given.new)),
        ],
    }
    same = bench.session()
    with tempfile.TemporaryDirectory() as scratch:
        trees = [_tree(commit, Path(scratch) / side) for side, commit in _sides(given)]
        try:
            for what in given.only.split(","):
                pairs = [
                    [_run(tree, commands[what], Path(scratch)) for tree in trees]
                    for _ in range(given.pairs)
                ]
                for kind in pairs[0][0]:
                    lines = [[side[kind] for side in pair] for pair in pairs]
                    described = summary(f"{what}, {kind}", lines)
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


def _run(tree: Path, command: list[str], scratch: Path) -> dict[str, float]:
    """Real tokens/s of one run by a checkout, by kind of work."""
    out = scratch / "run.jsonl"
    out.unlink(missing_ok=True)
    script, *options = command
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    done = subprocess.run(
        [sys.executable, str(tree / "benchmarks" / script), *options, "--out", str(out)],
        env=environment,
        cwd=scratch,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{script} in {tree}:\n{done.stdout}\n{done.stderr}")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return {_kind(line): _rate(line) for line in lines}


def _kind(line: bench.Line) -> str:
    return f"{line['adapters']} adapters" if "adapters" in line else str(line["rows"])


def _rate(line: bench.Line) -> float:
    """Tokens/s of a line; of training, all tokens over the time of all steps but the first."""
    if "tokens_per_second" in line:
        return float(line["tokens_per_second"])
    return sum(line["tokens"][1:]) / sum(line["seconds"][1:])


if __name__ == "__main__":
    main()
