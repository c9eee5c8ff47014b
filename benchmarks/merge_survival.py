"""What share of the gain in held-out loss survives an int8 and an NF4 merge.

    python benchmarks/merge_survival.py --out benchmarks/results/merge_survival.jsonl

The base is quantized (`lorakit merge --quantize` of pairs that are zero), and an adapter is trained on it
in float32, as it is dequantized: once plainly, once with --merge-aware. Each adapter is then merged into
the quantized base (--quantize base), the plain one into the full-precision weights too (--full-base), and
every merged folder is dequantized and measured on held-out rows. The gain is what the plain adapter takes from the
loss of the quantized base before it is merged; the share of a merge is what it takes from the same loss.

The rows are the demo's tickets, made by rule; the held-out ones have products that training has not.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    certificate = run_merge(config, adapters=[(adapter, 1.0)], out=out, **given)
    return certificate, plain(out)


def plain(folder: Path) -> Path:
    out = folder.with_name(folder.name + "-plain")
    out.mkdir()
    dequantize(folder, out)
    copy_tokenizer(folder, out)
    return out


def measure(form: str, full: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    rows = list(tickets(args.rows, seed=args.seed))
    held = list(tickets(args.held, seed=args.seed, held_out=True))
    zero, _ = opened(full)
    lorakit.attach(zero, lorakit.LoraSpec(rank=1))
    lorakit.save_adapter(zero, work / "zero")
    base = work / "base"
    _, start = merged(full, work / "zero", base, quantize=form)
    found: dict[str, Any] = {"loss_full_base": loss_of(full, held)}
    for way in ("plain", "aware"):
        model, tokenizer = opened(start)
        lorakit.attach(model, lorakit.LoraSpec(rank=args.rank), seed=args.seed)
        began = time.perf_counter()
        fitted = lorakit.train(
            *(model, tokenizer, rows),
            eval_data=held,
            max_steps=args.steps,
            eval_every=args.steps,
            batch_size=args.batch,
            seed=args.seed,
            keep="last",
            **({"merge_aware": form} if way == "aware" else {}),
        )
        seconds = time.perf_counter() - began
        adapter = lorakit.save_adapter(model, work / way)
        into, folder = merged(base, adapter, work / f"{way}-into", quantize="base")
        found[way] = {
            "loss_before": fitted.eval_loss_before,
            "loss_in_training": fitted.eval_loss,
            "loss_merged": loss_of(folder, held),
            "update_survived": into.weights.to_dict()["update_survived"],
            "seconds": seconds,
        }
        if way == "plain":
            onto, other = merged(base, adapter, work / "plain-full", full_base=str(full))
            found["full_base"] = {
                "loss_merged": loss_of(other, held),
                "update_survived": onto.weights.to_dict()["update_survived"],
            }
        print(form, way, found, flush=True)
    before = found["plain"]["loss_before"]
    gain = before - found["plain"]["loss_in_training"]
    for way in ("plain", "aware", "full_base"):
        found[way]["gain_survived"] = (before - found[way]["loss_merged"]) / gain
    return {"form": form, "gain": gain, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--forms", nargs="+", default=["int8", "nf4"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--held", type=int, default=48)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    full = resolve(lorakit.ModelSpec()).folder
    for form in args.forms:
        with tempfile.TemporaryDirectory() as work:
            line = measure(form, full, Path(work), args)
        line |= {name: getattr(args, name) for name in ("steps", "batch", "rank", "rows", "held")}
        line |= {"seed": args.seed, "dtype": "float32", "threads": 1, "versions": versions()}
        print(json.dumps(line), flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
