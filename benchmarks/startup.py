"""From the command to the end of the first training step, on a model that is already there.

    python benchmarks/startup.py --out benchmarks/results/startup.jsonl

`lorakit train` against a script around TRL's SFTTrainer (benchmarks/trl_loop.py) and a careful loop
around peft (benchmarks/peft_loop.py), taking turns: same model folder, number format, rows (the demo's, made here), rank and batch. The clock runs from
before the process is started until its first step is on record: the first line of a step in
lorakit's metrics.jsonl, a printed line in the scripts. `lorakit --help` is timed until it ends. One
round before those that count brings files into the machine's memory.

    python benchmarks/startup.py --quick --out benchmarks/results/quick.jsonl

times until help, usage errors and missing files are answered, which need no model.
"""

import argparse
import json
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import bench
import tables

TRL_SCRIPT = Path(__file__).parent / "trl_loop.py"
PEFT_SCRIPT = Path(__file__).parent / "peft_loop.py"
LORAKIT = Path(sys.executable).with_name("lorakit")
# Commands that are answered before torch is imported, each with its exit code.
QUICK = (
    (("--help",), 0),
    (("train", "--help"), 0),
    (("adapters", "combine", "--help"), 0),
    (("trian",), 2),
    (("train", "--lr", "1e-4"), 2),
    (("train", "--rank", "eight"), 2),
    (("train", "--data", "missing.jsonl"), 2),
    (("train", "--model", "./missing"), 2),
    (("generate", "--adapter", "missing", "hello"), 2),
)
STEP = '"kind": "train"'
POLL_SECONDS = 0.005


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="that count")
    parser.add_argument("--batch-size", type=int, default=16, help="rows of the step")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    parser.add_argument("--quick", action="store_true", help="only what needs no model")
    options = parser.parse_args()
    if options.quick:
        lines = quick(options.rounds)
        bench.append(options.out, lines)
        print(tables.quick(lines))
        return
    import torch

    from lorakit.data import write_tickets
    from lorakit.models import ModelSpec
    from lorakit.models.devices import torch_dtype
    from lorakit.models.sources import resolve

    model = str(resolve(ModelSpec()).folder)
    dtype = str(torch_dtype(ModelSpec())).removeprefix("torch.")
    same = bench.session() | bench.surroundings(torch.device("cpu"), "trl")
    lines: list[bench.Line] = []
    with tempfile.TemporaryDirectory() as scratch:
        rows, _ = write_tickets(Path(scratch), rows=options.batch_size, eval_rows=1)

        def lorakit(out: Path) -> bench.Line:
            wanted = ["--data", str(rows), "--out", str(out / "run"), "--model", model]
            wanted += ["--batch-size", str(options.batch_size), "--max-steps", "1", "--rank", "8"]
            wanted += ["--eval-share", "0", "--samples", "0"]
            return timed([str(LORAKIT), "train", *wanted], out, out / "run" / "metrics.jsonl")

        def trl(out: Path) -> bench.Line:
            wanted = [str(rows), "--model", model, "--out", str(out), "--dtype", dtype]
            wanted += ["--batch-size", str(options.batch_size), "--rank", "8"]
            return timed([sys.executable, str(TRL_SCRIPT), *wanted], out, out / "said")

        def peft(out: Path) -> bench.Line:
            wanted = [str(rows), "--model", model, "--dtype", dtype, "--rank", "8"]
            wanted += ["--batch-size", str(options.batch_size)]
            return timed([sys.executable, str(PEFT_SCRIPT), *wanted], out, out / "said")

        def help_page(out: Path) -> bench.Line:
            return timed([str(LORAKIT), "--help"], out)

        commands: dict[str, Callable[[Path], bench.Line]] = {
            "lorakit train": lorakit,
            "TRL": trl,
            "peft loop": peft,
            "lorakit --help": help_page,
        }
        for turn in range(options.rounds + 1):
            for name, command in commands.items():
                out = Path(tempfile.mkdtemp(dir=scratch))
                line = same | {"what": name, "batch_size": options.batch_size} | command(out)
                bench.note(f"{turn}/{options.rounds} {name}: {line['seconds']:.2f} s")
                if turn:
                    lines.append(line)
    bench.append(options.out, lines)
    print(tables.startup(lines))


def quick(rounds: int) -> list[bench.Line]:
    """Every command of `QUICK`, in turns, after one turn that does not count."""
    import torch

    same = bench.session() | bench.surroundings(torch.device("cpu"))
    lines: list[bench.Line] = []
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(rounds + 1):
            for words, code in QUICK:
                line = same | {"what": shlex.join(("lorakit", *words))}
                started, before = time.perf_counter(), processor_seconds()
                process = subprocess.run([LORAKIT, *words], cwd=scratch, capture_output=True)
                line["seconds"] = time.perf_counter() - started
                line["processor_seconds"] = processor_seconds() - before
                if process.returncode != code:
                    raise SystemExit(f"{line['what']} ended with {process.returncode}")
                bench.note(f"{turn}/{rounds} {line['what']}: {line['seconds']:.2f} s")
                if turn:
                    lines.append(line)
    return lines


def processor_seconds() -> float:
    """What ended processes of this one took of the processor: other work beside them does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(command: list[str], out: Path, record: Path | None = None) -> bench.Line:
    """Seconds until a step stands in the file `record`, or without one until the process ends.

    Raises:
        SystemExit: the command failed; what it wrote has been shown.
    """
    said, seconds = out / "said", None
    started = time.perf_counter()
    with said.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while record is not None and seconds is None and process.poll() is None:
            if record.exists() and STEP in record.read_text():
                seconds = time.perf_counter() - started
            time.sleep(POLL_SECONDS)
        failed = process.wait()
    if record is None:
        seconds = time.perf_counter() - started
    if failed or seconds is None:
        sys.stderr.write(said.read_text())
        raise SystemExit(f"{command[0]} ended with {failed} and no first step")
    return {"seconds": seconds, "step_seconds": step_seconds(record) if record else None}


def step_seconds(record: Path) -> float:
    """What the step alone took, as its own record says."""
    line = next(line for line in record.read_text().splitlines() if STEP in line)
    return float(json.loads(line)["seconds"])


if __name__ == "__main__":
    main()
