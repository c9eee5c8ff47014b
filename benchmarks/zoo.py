"""Every causal architecture of the installed transformers, as a tiny random model, against its own code.

    python benchmarks/zoo.py                        # all; benchmarks/results/zoo.jsonl
    python benchmarks/zoo.py --only llama,mamba     # some, also variants such as phi3+longrope
    python benchmarks/zoo.py --resume               # those that have no line yet
    python benchmarks/zoo.py --digest               # print the lines by what failed

One process an architecture, one JSON line each: what tests/zoo_checks.py finds (loss and gradients
against W + s·B·A of each row alone, training, peft, merge, generation, serving), how the model is run,
and what is adapted of the family's own default sizes. docs/models.md is made from the lines by
`python benchmarks/tables.py --write`.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import bench

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
RESULTS = bench.RESULTS / "zoo.jsonl"


def work(name: str, answer: Connection) -> None:
    """Examine one architecture, in a process of its own."""
    import torch
    import transformers

    import zoo_checks

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as folder:
            subject = zoo_checks.examine(name, Path(folder))
            checks = {k: text.replace(folder, "FOLDER") for k, text in subject.checks.items()}
        line: bench.Line = {"checks": checks, "facts": subject.facts}
    except Exception as error:
        line = {"checks": {"built": f"oracle: {type(error).__name__}: {error}"[:400]}, "facts": {}}
    if "+" not in name:
        try:
            line["plan"] = zoo_checks.default_plan(name)
        except Exception as error:
            line["plan"] = {"error": f"{type(error).__name__}: {error}"[:400]}
    line["verdict"] = zoo_checks.verdict(line["checks"])
    answer.send(line)


def examine_all(names: Sequence[str], jobs: int, seconds: float, out: Path) -> None:
    """Examine architectures, a few at once; a line is written as soon as it is there."""
    import zoo_checks  # noqa: F401  (the processes begin with everything imported)

    session = bench.session() | {"versions": versions()}
    context = multiprocessing.get_context("fork")
    waiting, running = list(names), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(name, theirs))
            process.start()
            theirs.close()
            running[ours] = (name, process, time.monotonic())
        done = wait(list(running), timeout=1.0)
        for pipe, (name, process, began) in list(running.items()):
            spent = time.monotonic() - began
            if pipe in done:
                try:
                    line = pipe.recv()
                except EOFError:
                    process.join()
                    line = failed(f"FAULT: the process ended with {process.exitcode}")
            elif spent > seconds:
                process.kill()
                line = failed(f"FAULT: not done after {seconds:.0f} s")
            else:
                continue
            process.join()
            del running[pipe]
            line = {"name": name, "seconds": round(spent, 1), **line, **session}
            bench.append(out, [line])
            bench.note(f"{name:28}{line['verdict']:9}{said(line)}")


def failed(text: str) -> bench.Line:
    """The line of a process that gave none."""
    return {"checks": {"process": text}, "facts": {}, "plan": {}, "verdict": "WRONG"}


def versions() -> dict[str, str]:
    """Of the packages that decide."""
    from importlib.metadata import version

    return {name: version(name) for name in ("lorakit", "torch", "transformers", "peft")}


def said(line: bench.Line) -> str:
    """What is not right, in one line."""
    return "; ".join(f"{k} {v}" for k, v in line["checks"].items() if v != "right")[:200]


def latest(path: Path = RESULTS) -> dict[str, bench.Line]:
    """The newest line of each architecture, by name."""
    return {line["name"]: line for line in bench.read(path)}


def digest(lines: dict[str, bench.Line]) -> str:
    """What failed, grouped by the check and the beginning of its words."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, line in lines.items():
        for check, text in line["checks"].items():
            if text != "right":
                groups[check, kind(text)].append(name)
    counts: dict[str, int] = defaultdict(int)
    for line in lines.values():
        counts[line["verdict"]] += 1
    served = sum(line["checks"].get("serves") == "right" for line in lines.values())
    parts = [f"{len(lines)} examined: {dict(counts)}; served right: {served}"]
    for (check, text), names in sorted(
        groups.items(), key=lambda item: (item[0][0], -len(item[1]))
    ):
        example = lines[names[0]]["checks"][check]
        parts.append(f"\n## {check}: {text} ({len(names)})\n{', '.join(names)}\n\n    {example}")
    return "\n".join(parts)


def kind(text: str) -> str:
    """A verdict without its figures and names, for grouping."""
    words = [w for w in text.split() if not any(c.isdigit() or c in "._'" for c in w)]
    return " ".join(words[:7])


def main() -> None:
    """Examine what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="architectures and variants, with commas")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--seconds", type=float, default=120, help="most for one architecture")
    parser.add_argument("--resume", action="store_true", help="leave out what has a line in --out")
    parser.add_argument("--digest", action="store_true", help="examine nothing, print the lines")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.digest:
        print(digest(latest(options.out)))
        return
    import architectures

    known: dict[str, Any] = dict.fromkeys([*architectures.names(), *architectures.VARIANTS])
    names = list(bench.pick(parser, options.only, known) if options.only else known)
    if options.resume:
        have = latest(options.out)
        names = [name for name in names if name not in have]
    elif not options.only and options.out.exists():
        kept = [
            json.dumps(line) + "\n" for n, line in latest(options.out).items() if n not in known
        ]
        options.out.write_text("".join(kept), encoding="utf-8")
    examine_all(names, options.jobs, options.seconds, options.out)
    print(digest(latest(options.out)).split("\n")[0])


if __name__ == "__main__":
    main()
