"""One GPU, eight minutes: training and serving beside peers, interleaved, one JSON line a run.

    python benchmarks/gpu.py --out benchmarks/results/gpu.jsonl
    python benchmarks/gpu.py --dry-run            # the whole script on a CPU, with tiny models

Training: lorakit, a careful loop around peft, and TRL's SFTTrainer tuned (with Liger's kernels too, where they
are installed), on the built-in model and on random Llamas of 1 and 8 billion parameters in bfloat16, rank 8 on
all linears. A model is loaded once, in a process of its own; contenders take turns on it (A B C A B C …), each
for a few steps on the same rows, of which the first half is not counted: kernels are compiled and graphs captured
then. Serving: 32 requests at once on the
built-in model's shapes without adapters, with 8 and with 32, beside peft's mixed batch (`adapter_names`).

Printed are medians: real tokens/s (padding does not count), the ratio to lorakit, MFU (F · tokens/s over the
card's dense bfloat16 rate, F without recomputation as in docs/performance.md), and the most memory allocated.

Each phase has a share of `--seconds`, and what one leaves goes to the next. A phase begins another round only
where the last one's time is left, and is ended at its limit: the lines that it had written stay.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bench

SHARES = {"builtin": 0.25, "1b": 0.22, "8b": 0.33, "serving": 0.20}
"""Phases, in order, and the share of the time that each may take."""
GRACE = 10.0  # seconds that a phase may be late before it is ended
CONTENDERS = ("lorakit", "peft", "trl", "trl-liger")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phases", default=",".join(SHARES), help="which, commas between")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="who trains")
    parser.add_argument("--seconds", type=float, help="for everything together [450; dry 110]")
    parser.add_argument("--rounds", type=int, help="turns of each contender, at most [3; dry 2]")
    parser.add_argument(
        "--steps", type=int, help="of a turn [30 of the built-in model, 10 of others; dry 3]"
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny models, on whatever is here")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    options = parser.parse_args()
    phases = bench.pick(parser, options.phases, SHARES)
    contenders = list(bench.pick(parser, options.contenders, dict.fromkeys(CONTENDERS)))
    dry = options.dry_run
    total, rounds = (
        options.seconds or (110.0 if dry else 450.0),
        options.rounds or (2 if dry else 3),
    )
    if not dry:
        import torch

        if not torch.cuda.is_available():
            parser.error("no CUDA device is here: --dry-run tries the script without one")
    session, lines = bench.session(), list[bench.Line]()
    began, shared = time.monotonic(), sum(phases.values())
    due = 0.0
    for phase, share in phases.items():
        due += share / shared * total
        steps = options.steps or (3 if dry else 30 if phase == "builtin" else 10)
        task = {"phase": phase, "contenders": contenders, "rounds": rounds}
        task |= {"steps": steps, "dry": dry}
        left = began + due - time.monotonic()
        bench.note(f"{phase}: at most {left:.0f} s")
        for line in _of_phase(task, left):
            lines.append(session | line)
            bench.note(_said(line))
            bench.append(options.out, lines[-1:])
    print(f"{_card(lines)}, {time.monotonic() - began:.0f} s in all\n")
    print(training_table(lines), serving_table(lines), sep="\n\n")


def _of_phase(task: bench.Line, seconds: float) -> Iterator[bench.Line]:
    """The lines of a process of its own, as it writes them; it is ended at its limit."""
    if seconds < 5:
        yield {"phase": task["phase"], "failed": "no time was left for it"}
        return
    given = json.dumps(task | {"until": time.time() + seconds})
    command = [sys.executable, __file__, "--task", given]
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
            assert child.stdout is not None
            timer = threading.Timer(seconds + GRACE, child.kill)
            timer.start()
            try:
                for text in child.stdout:
                    if text.startswith('{"phase"'):
                        yield json.loads(text)
            finally:
                timer.cancel()
                child.kill()
        if child.returncode:
            errors.seek(0)
            late = child.returncode == -9
            said = "its time was over" if late else (errors.read().strip() or "?").splitlines()[-1]
            yield {"phase": task["phase"], "failed": said}


# ---- what is printed


def _said(line: bench.Line) -> str:
    who = " ".join(str(line[k]) for k in ("phase", "rows", "contender", "adapters") if k in line)
    if "failed" in line:
        return f"  {who}: {line['failed']}"
    return f"  {who}: {rate(line):,.0f} tokens/s"


def _card(lines: list[bench.Line]) -> str:
    cards = {
        line["machine"].get("gpu", line["machine"]["cpu"]) for line in lines if "machine" in line
    }
    return ", ".join(sorted(cards)) or "nothing was measured"


def rate(line: bench.Line) -> float:
    """Real tokens/s of the steps that count; of serving, answered tokens/s."""
    if "tokens_per_second" in line:
        return float(line["tokens_per_second"])
    first = line["warm"]
    return float(sum(line["tokens"][first:]) / sum(line["seconds"][first:]))


def _median(lines: list[bench.Line], value: Callable[[bench.Line], float]) -> float:
    ordered = sorted(map(value, lines))
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else sum(ordered[middle - 1 : middle + 1]) / 2


def training_table(lines: list[bench.Line]) -> str:
    """Medians over the turns; a contender that failed keeps its place, with the reason."""
    found: dict[tuple[str, str], dict[str, list[bench.Line]]] = {}
    for line in lines:
        if "rows" in line:
            kind = found.setdefault((line["model"], line["rows"]), {})
            kind.setdefault(line["contender"], []).append(line)
    rows = []
    for (model, kind), of in found.items():
        ours = [line for line in of.get("lorakit", []) if "failed" not in line]
        for who, theirs in of.items():
            good = [line for line in theirs if "failed" not in line]
            if not good:
                rows.append([model, kind, who, theirs[-1]["failed"], "", "", "", "0"])
                continue
            speed = _median(good, rate)
            ratio = f"{_median(ours, rate) / speed:.2f}" if ours else ""
            mfu = _median(good, lambda x: rate(x) * x["flops_per_token"] / x["peak_flops"])
            memory = bench.gigabytes(max(line["peak_memory_bytes"] for line in good))
            rows.append(
                [model, kind, who, f"{speed:,.0f}", ratio, f"{mfu:.3f}", memory, str(len(good))]
            )
    head = ["model", "rows", "who", "tokens/s", "lorakit / it", "MFU", "peak memory", "turns"]
    return bench.table(head, rows)


def serving_table(lines: list[bench.Line]) -> str:
    """Answered tokens/s by the number of adapters in the batch."""
    rows = [
        [
            line["contender"],
            str(line["adapters"]),
            line["failed"] if "failed" in line else f"{rate(line):,.0f}",
        ]
        for line in lines
        if "adapters" in line
    ]
    return bench.table(["who", "adapters", "answered tokens/s"], rows)


def work(given: bench.Line) -> bench.Line:
    import gpu_phases

    def say(line: bench.Line) -> None:
        print(json.dumps({"phase": given["phase"]} | line), flush=True)

    gpu_phases.run(given, say)
    return {}


if __name__ == "__main__":
    bench.run(main, work)
