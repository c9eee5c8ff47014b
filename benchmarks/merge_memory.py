"""How much memory `lorakit merge` takes for a sharded model that is larger than that.

    python benchmarks/merge_memory.py --out benchmarks/results/merge_memory.jsonl

A random bfloat16 llama of --gigabytes is written shard by shard, with an adapter on all linear
layers; then one process of its own merges it with the certificate of the weights. The peak is that
process's largest resident size. It is given above a bare interpreter, and above one that has
imported everything a merge imports. The merged tensors are read back by safetensors alone and one
of them is held against W + s·B·A.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
LAYER = 2048 * (2 * 2048 + 2 * 512 + 3 * 5632)
EMBEDDINGS = 2 * 32000 * 2048


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def make(folder: Path, gigabytes: float, shard_megabytes: int, rank: int) -> None:
    """The model's shards, written one after the other, and an adapter with random pairs."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig

    from lorakit import LoraSpec, ModelSpec, plan
    from lorakit.adapters.pairs import StoredAdapter, unit_pair, write_stored
    from lorakit.adapters.peft_config import PeftConfig
    from lorakit.models import empty_model

    layers = max(round((gigabytes * 1e9 / 2 - EMBEDDINGS) / LAYER), 1)
    base = folder / "base"
    base.mkdir()
    config = LlamaConfig(
        **SHAPE, num_hidden_layers=layers, architectures=["LlamaForCausalLM"], dtype="bfloat16"
    )
    config.save_pretrained(base)
    Tokenizer(models.BPE(vocab={"a": 0, "</s>": 1}, merges=[])).save(str(base / "tokenizer.json"))
    model = empty_model(ModelSpec(model=str(base), dtype="bfloat16", device="cpu"))
    generator = torch.Generator().manual_seed(0)
    shards: list[list[str]] = [[]]
    sizes = {name: tensor.numel() * 2 for name, tensor in model.state_dict().items()}
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > shard_megabytes * 1e6:
            shards.append([])
        shards[-1].append(name)
    where = {}
    for i, names in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            name: torch.randn(
                model.state_dict()[name].shape, generator=generator, dtype=torch.bfloat16
            )
            * 0.02
            for name in names
        }
        save_file(tensors, base / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    spec = LoraSpec(rank=rank, alpha=float(rank))
    pairs = {}
    for target in plan(model, spec).targets:
        shape_A, shape_B = target.geometry.pair_shapes(rank)
        A, B = (torch.randn(s, generator=generator) * 0.02 for s in (shape_A, shape_B))
        pairs[target.path] = unit_pair(A, B, target.geometry.kind)
    names = tuple(sorted({path.rsplit(".", 1)[-1] for path in pairs}))
    stored = StoredAdapter(Path("random"), PeftConfig(spec, names), None, pairs)
    write_stored(folder / "adapter", stored)


def merge(folder: Path) -> dict[str, Any]:
    """What the measured process does."""
    bare = peak_bytes()
    # transformers imports a model's own module when it is first built.
    from transformers import LlamaForCausalLM  # noqa: F401

    from lorakit.config import RunConfig
    from lorakit.models import ModelSpec
    from lorakit.run.commands.merging import run_merge
    from lorakit.run.machine import versions

    imported = peak_bytes()
    started = time.perf_counter()
    certificate = run_merge(
        RunConfig(model=ModelSpec(model=str(folder / "base"))),
        adapters=[(folder / "adapter", 1.0)],
        out=folder / "merged",
        dtype="base",
        certify="weights",
    )
    assert certificate.weights is not None
    return {
        "bare_bytes": bare,
        "imported_bytes": imported,
        "peak_bytes": peak_bytes(),
        "seconds": time.perf_counter() - started,
        "certificate": str(certificate.weights),
        "passed": certificate.passed,
        "versions": versions(),
    }


def check(folder: Path) -> float:
    """Largest difference of one merged tensor from the float64 sum, by safetensors alone."""
    from safetensors import safe_open

    index = json.loads((folder / "merged" / "model.safetensors.index.json").read_text())
    name = "model.layers.0.mlp.down_proj.weight"
    file = index["weight_map"][name]
    with (
        safe_open(folder / "merged" / file, "pt") as new,
        safe_open(folder / "base" / file, "pt") as old,
    ):
        written, W = new.get_tensor(name).double(), old.get_tensor(name).double()
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as adapter:
        A, B = (
            adapter.get_tensor(f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight")
            for x in "AB"
        )
    return float((written - W - B.double() @ A.double()).abs().max())


def child(step: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One step in a process of its own, so that no other's memory counts."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    command += ["--gigabytes", str(arguments.gigabytes), "--rank", str(arguments.rank)]
    command += ["--shard-megabytes", str(arguments.shard_megabytes)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--shard-megabytes", type=int, default=500)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", choices=("make", "merge", "check"))
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.step == "make":
        make(arguments.folder, arguments.gigabytes, arguments.shard_megabytes, arguments.rank)
        print("{}")
    elif arguments.step == "merge":
        print(json.dumps(merge(arguments.folder)))
    elif arguments.step == "check":
        print(json.dumps({"largest_difference": check(arguments.folder)}))
    else:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            child("make", folder, arguments)
            shards = sorted((folder / "base").glob("*.safetensors"))
            row = {
                "model_bytes": sum(f.stat().st_size for f in shards),
                "shards": len(shards),
                "rank": arguments.rank,
                **child("merge", folder, arguments),
                **child("check", folder, arguments),
            }
        row["above_interpreter_bytes"] = row["peak_bytes"] - row["bare_bytes"]
        row["above_imports_bytes"] = row["peak_bytes"] - row["imported_bytes"]
        print(json.dumps(row, indent=2))
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
