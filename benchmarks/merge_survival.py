"""What share of the gain in held-out loss survives an int8 and an NF4 merge.

    python benchmarks/merge_survival.py --out benchmarks/results/merge_survival.jsonl
    python benchmarks/merge_survival.py --task snips --data DATA --work FOLDER --seeds 0 1 2 --out …
    python benchmarks/merge_survival.py --table benchmarks/results/merge_survival.jsonl

The base is quantized (`lorakit merge --quantize` of pairs that are zero), and an adapter is trained on it
in float32, as it is dequantized: once plainly, once with --merge-aware. Each adapter is then merged into
the quantized base (--quantize base), the plain one into the full-precision weights too (--full-base), and
every merged folder is dequantized and measured on held-out rows. The gain is what the plain adapter takes from the
loss of the quantized base before it is merged; the share of a merge is what it takes from the same loss.

The rows are the demo's tickets, made by rule, whose held-out ones have products that training has not; or SNIPS's or
GSM8K's (DATA holds them as public files, docs/measured.md names them), of which a seed chooses those that are trained on.
--work keeps the parts of a measurement (the quantized base, each training with its merges): a stopped one goes on
there, and --one ends after one part.
"""

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import quantized_loss
import torch

import lorakit
from lorakit.data.tickets import tickets
from lorakit.merging.certify import Certificate
from lorakit.merging.dequantize import dequantize
from lorakit.merging.model_folder import copy_tokenizer
from lorakit.models.sources import resolve
from lorakit.run.commands.merging import run_merge
from lorakit.run.machine import versions

SPEC = lorakit.ModelSpec(dtype="float32", device="cpu")


def opened(folder: Path) -> tuple[Any, Any]:
    return lorakit.load_model(replace(SPEC, model=str(folder)))


def loss_of(folder: Path, held: Any) -> float:
    """Held-out loss in nats per supervised token."""
    model, tokenizer = opened(folder)
    loss: float = lorakit.evaluate(model, held, tokenizer=tokenizer, metrics="none")["eval_loss"]
    return loss


def merged(base: Path, adapter: Path, out: Path, **options: Any) -> tuple[Certificate, Path]:
    """Merge into a quantized folder; the folder, and an ordinary one of its numbers."""
    config = lorakit.load_config(None, {"model": str(base), "dtype": "float32", "device": "cpu"})
    given = {"dtype": "base", "certify": "auto", "force": True} | options
    shutil.rmtree(out, ignore_errors=True)
    certificate = run_merge(config, adapters=[(adapter, 1.0)], out=out, **given)
    return certificate, plain(out)


def plain(folder: Path) -> Path:
    out = folder.with_name(folder.name + "-plain")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    dequantize(folder, out)
    copy_tokenizer(folder, out)
    return out


def rows_of(args: argparse.Namespace, seed: int) -> tuple[Any, Any]:
    """Rows that are trained on, and held-out ones."""
    if args.task == "tickets":
        held = list(tickets(args.held, seed=seed, held_out=True))
        return list(tickets(args.rows, seed=seed)), held
    task = quantized_loss.TASKS[args.task]

    def as_pairs(file: str, count: int, chosen: int) -> list[dict[str, str]]:
        rows = quantized_loss.drawn(args.data / file, count, chosen)
        texts = [
            {n: v if isinstance(v, str) else json.dumps(v) for n, v in r.items()} for r in rows
        ]
        return [
            {"prompt": task.prompt.format(**row), "completion": task.completion.format(**row)}
            for row in texts
        ]

    return as_pairs(task.train, args.rows, seed), as_pairs(task.held, args.held, 0)


class Measurement:
    """One format and seed, in parts that are kept in a folder."""

    def __init__(self, form: str, seed: int, full: Path, work: Path, args: Any) -> None:
        self.form, self.seed, self.full, self.work, self.args = form, seed, full, work, args
        self.work.mkdir(parents=True, exist_ok=True)
        self.rows, self.held = rows_of(args, seed)

    def parts(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """What is measured, in its order."""
        return {
            "base": self.base,
            "plain": lambda: self.trained("plain"),
            "full_base": self.full_base,
            "aware": lambda: self.trained("aware"),
        }

    def next(self) -> bool:
        """Measure the first part that is not there; whether there was one."""
        for name, measure in self.parts().items():
            file = self.work / f"{name}.json"
            if not file.is_file():
                file.write_text(json.dumps(measure()))
                print(self.form, self.seed, name, file.read_text(), flush=True)
                return True
        return False

    def base(self) -> dict[str, Any]:
        zero, _ = opened(self.full)
        lorakit.attach(zero, lorakit.LoraSpec(rank=1))
        lorakit.save_adapter(zero, self.work / "zero", overwrite=True)
        merged(self.full, self.work / "zero", self.work / "base", quantize=self.form)
        return {"loss_full_base": loss_of(self.full, self.held)}

    def trained(self, way: str) -> dict[str, Any]:
        args = self.args
        model, tokenizer = opened(self.work / "base-plain")
        lorakit.attach(model, lorakit.LoraSpec(rank=args.rank), seed=self.seed)
        began = time.perf_counter()
        fitted = lorakit.train(
            *(model, tokenizer, self.rows),
            eval_data=self.held,
            max_steps=args.steps,
            eval_every=args.steps,
            batch_size=args.batch,
            seed=self.seed,
            keep="last",
            **({"merge_aware": self.form} if way == "aware" else {}),
        )
        seconds = time.perf_counter() - began
        adapter = lorakit.save_adapter(model, self.work / way, overwrite=True)
        del model
        into, folder = merged(
            self.work / "base", adapter, self.work / f"{way}-into", quantize="base"
        )
        return {
            "loss_before": fitted.eval_loss_before,
            "loss_in_training": fitted.eval_loss,
            "loss_merged": loss_of(folder, self.held),
            "update_survived": into.weights.to_dict()["update_survived"],
            "seconds": seconds,
        }

    def full_base(self) -> dict[str, Any]:
        given = {"full_base": str(self.full)}
        onto, folder = merged(self.work / "base", self.work / "plain", self.work / "onto", **given)
        return {
            "loss_merged": loss_of(folder, self.held),
            "update_survived": onto.weights.to_dict()["update_survived"],
        }

    def result(self) -> dict[str, Any]:
        """All of it, with what share of the gain each merge keeps."""
        found = {
            name: json.loads((self.work / f"{name}.json").read_text()) for name in self.parts()
        }
        before = found["plain"]["loss_before"]
        gain = before - found["plain"]["loss_in_training"]
        for way in ("plain", "aware", "full_base"):
            found[way]["gain_survived"] = (before - found[way]["loss_merged"]) / gain
        return {"form": self.form, "gain": gain, **found.pop("base"), **found}


def table(lines: list[dict[str, Any]]) -> str:
    """Of each task, length and format the shares of the gain, mean and each seed's."""
    by: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        length = f"{line['steps']} × {line['batch']}"
        by.setdefault((line.get("task", "tickets"), line["form"], length), []).append(line)
    names = {"plain": "plain", "aware": "merge-aware", "full_base": "plain, `--full-base`"}
    out = [
        "| rows | format | steps × rows | training and merge | of the gain survives | each seed |"
    ]
    out.append("|" + "---|" * 6)
    for (task, form, length), found in by.items():
        for way, name in names.items():
            shares = [line[way]["gain_survived"] for line in found]
            each = ", ".join(f"{share:.1%}" for share in shares) if len(shares) > 1 else "one seed"
            mean = f"{statistics.mean(shares):.1%}"
            out.append(f"| {task} | {form} | {length} | {name} | {mean} | {each} |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--task", choices=["tickets", "snips", "gsm8k"], default="tickets")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, help="a folder that keeps the parts")
    parser.add_argument("--one", action="store_true", help="end after one part")
    parser.add_argument("--forms", nargs="+", default=["int8", "nf4"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--held", type=int, default=48)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    if args.table:
        print(table(quantized_loss.lines_of(args.table)))
        return
    torch.set_num_threads(1)
    full = resolve(lorakit.ModelSpec()).folder
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        for seed, form in itertools.product(args.seeds, args.forms):
            place = work / f"{args.task}-{form}-{seed}"
            if (place / "done").is_file():
                continue
            measurement = Measurement(form, seed, full, place, args)
            while measurement.next():
                if args.one:
                    return
            write(args, seed, measurement.result())
            (place / "done").touch()
    print("0 runs are left")


def write(args: argparse.Namespace, seed: int, line: dict[str, Any]) -> None:
    names = ("task", "steps", "batch", "rank", "rows", "held")
    line |= {name: getattr(args, name) for name in names}
    line |= {"seed": seed, "dtype": "float32", "threads": 1, "versions": versions()}
    print(json.dumps(line), flush=True)
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
