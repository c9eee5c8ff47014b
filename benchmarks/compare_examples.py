"""LoRA against full fine-tuning on three real tasks: the pages in docs/examples.

    python benchmarks/compare_examples.py --data DATA --only e2e
    python benchmarks/compare_examples.py --data DATA --try        # 2 steps, nothing kept
    python benchmarks/tables.py --write                            # their tables in the pages

Runs `lorakit compare` once a task, each about a quarter of an hour on two cores with native
bfloat16, and copies its page and figures to docs/examples/compare-TASK.html and .json. A run that
was killed goes on where it stood when the same line is given again.

    e2e         facts about a restaurant -> a sentence
    snips       a spoken command -> JSON
    banking77   a customer's sentence -> one of 77 intents

The files are sorted by what they are about, so the held-out rows are a seeded share of the
training file and not the first rows of the test file; no prompt is on both sides.
"""

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"


@dataclass(frozen=True)
class Task:
    """Rows below the data folder, and the flags that suit them."""

    rows: str
    flags: tuple[str, ...]


COMMON = (
    *("--template", "raw", "--ranks", "8", "--seeds", "2", "--rates", "4"),
    *("--evaluations", "4", "--max-eval-rows", "200"),
)
TASKS = {
    "e2e": Task(
        "e2e/train.jsonl.gz",
        (
            *("--prompt", "{context} ||", "--completion", " {completion}", "--max-rows", "4000"),
            *("--batch-size", "8", "--budget", "80 steps"),
            *("--samples", "64", "--max-new-tokens", "64"),
        ),
    ),
    "snips": Task(
        "snips/train.jsonl",
        (
            *("--prompt", "{text}\n"),
            *("--completion", '{{"intent": "{intent}", "slots": {slots}}}', "--max-rows", "4000"),
            *("--batch-size", "8", "--budget", "80 steps"),
            *("--samples", "64", "--max-new-tokens", "80"),
        ),
    ),
    "banking77": Task(
        "banking77/train.csv",
        (
            *("--prompt", "{text}\n", "--completion", "{category}"),
            *("--batch-size", "16", "--budget", "96 steps"),
            *("--samples", "200", "--max-new-tokens", "16"),
        ),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the folder of e2e, snips, …")
    parser.add_argument("--only", default=",".join(TASKS), help="tasks, commas between")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs lie")
    parser.add_argument("--try", action="store_true", dest="tries", help="2 steps, nothing kept")
    given = parser.parse_args()
    if given.data is None:
        parser.error("--data is needed: the folder of e2e, snips and banking77")
    for name in given.only.split(","):
        if given.tries:
            with tempfile.TemporaryDirectory() as scratch:
                more = ("--budget", "2 steps", "--samples", "4", "--max-eval-rows", "20")
                out = compare(name, given.data, Path(scratch), (*more, "--rates", "2"))
                print((out / "report.html").stat().st_size, "bytes of page")
            continue
        out = compare(name, given.data, given.runs, ())
        EXAMPLES.mkdir(parents=True, exist_ok=True)
        shutil.copy(out / "report.html", EXAMPLES / f"compare-{name}.html")
        shutil.copy(out / "result.json", EXAMPLES / f"compare-{name}.json")
        print(json.loads((out / "result.json").read_text())["measured"]["headline"])


def results() -> list[tuple[str, Any]]:
    """Name and result.json of each committed example."""
    return [
        (file.stem.removeprefix("compare-"), json.loads(file.read_text(encoding="utf-8")))
        for file in sorted(EXAMPLES.glob("compare-*.json"))
    ]


def judged(made: Any, between: Any) -> tuple[Any, str]:
    """The difference of held-out loss with its interval, and the word.

    Results of before the words had their present meaning have another interval (Satterthwaite's degrees
    of freedom, percentiles over rows). It says how much of its variance was the rows', beside that of the
    seeds, which is in the losses by seed: the interval of now follows from both.
    """
    from scipy.special import stdtrit

    from lorakit.evaluation.crossed import CrossedInterval, with_seed_noise
    from lorakit.evaluation.verdict import judge

    loss, verdict = between["loss"], between["verdict"]
    if "word" in verdict:
        return loss, verdict["word"]
    arms = {arm["name"]: arm for arm in made["arms"]}
    ours, theirs = (arms[between[name]]["losses"] for name in ("arm", "against"))
    seeds = len(ours)
    of_seeds = statistics.variance(a - b for a, b in zip(ours, theirs, strict=True)) / seeds
    reach = [
        float(stdtrit(n, 0.5 + loss["level"] / 2)) for n in (loss["degrees"], loss["rows"] - 1)
    ]
    total = ((loss["high"] - loss["low"]) / 2 / reach[0]) ** 2
    half = reach[1] * max(total - of_seeds, 0.0) ** 0.5
    mean = loss["mean"]
    rows = CrossedInterval(
        mean, mean - half, mean + half, loss["level"], seeds, loss["rows"], 1.0, 0
    )
    d = with_seed_noise(rows, of_seeds, seeds - 1)
    return d.to_dict(), judge(d, made["protocol"]["margin"] * verdict["gain"]).word


def table() -> str:
    """The committed examples for a page in docs/: one row an example and arm beside the reference."""
    rows, commands, machines = [], [], set()
    for name, made in results():
        commands.append(made["command"])
        machine, versions = made["measured"]["machine"], made["versions"]
        machines.add(
            f"{machine['cpu']}, {machine['cores']} cores, {made['dtype']}; lorakit "
            f"{versions['lorakit']}, torch {versions['torch']}"
        )
        arms = {arm["name"]: arm for arm in made["arms"]}
        for between in made["differences"]:
            arm, full = arms[between["arm"]], arms[between["against"]]
            loss, word = judged(made, between)
            metric = next(iter(arm["scores"]))
            times = 1 if arm["scores"][metric]["unit"] == "points" else 100
            values = [times * each["scores"][metric]["mean"] for each in (full, arm)]
            rows.append(
                f"| [{name}](examples/compare-{name}.html) "
                f"({made['tokens_per_step'] / made['protocol']['batch_size']:.0f} tokens) "
                f"| {between['arm']} "
                f"| {full['loss']['mean']:.3f} | {arm['loss']['mean']:.3f} "
                f"| {loss['mean']:+.3f} ({loss['low']:+.3f} to {loss['high']:+.3f}) "
                f"| {metric.replace('_', ' ')} {values[0]:.1f} / {values[1]:.1f} "
                f"| {arm['kl']['mean'] / full['kl']['mean']:.2f} "
                f"| {between['fewer_parameters']:.1%} "
                f"| {between['measured']['peak_memory_bytes_share']:.2f} "
                f"| {between['measured']['seconds_per_step_share']:.2f} "
                f"| {word} |"
            )
    head = (
        "| rows | arm | loss, full | loss, LoRA | difference (95 % interval) | answers, full / LoRA "
        "| KL, LoRA / full | fewer parameters | memory, LoRA / full | step, LoRA / full | verdict |"
    )
    lines = [head, "|" + " --- |" * 11, *rows, "", f"{'; '.join(sorted(machines))}:", "", "```"]
    return "\n".join([*lines, *commands, "```"])


def compare(name: str, data: Path, runs: Path, more: tuple[str, ...]) -> Path:
    """One `lorakit compare`, from its beginning or from where it was killed; its folder.

    It runs in the folder of the runs, where `data` leads to the data, so that the command on the
    page names no path of this machine.
    """
    runs.mkdir(parents=True, exist_ok=True)
    link = runs / "data"
    if not link.is_symlink():
        link.symlink_to(data.resolve())
    task, out = TASKS[name], f"compare-{name}"
    flags = ["--data", f"data/{task.rows}", *COMMON, *task.flags, *more, "--out", out]
    if (runs / out / "config.yaml").exists():
        flags = ["--resume", "--out", out]
    print("lorakit compare", shlex.join(flags), flush=True)
    subprocess.run([sys.executable, "-m", "lorakit", "compare", *flags], check=True, cwd=runs)
    return runs / out


if __name__ == "__main__":
    main()
