"""Memory and held-out loss of a base in fewer bits, beside bfloat16.

    python benchmarks/quantized.py memory --out benchmarks/results/quantized_memory.jsonl
    python benchmarks/quantized.py loss --out benchmarks/results/quantized_loss.jsonl

memory: a random llama of --parameters (billions; "experts": a Mixtral of 8 experts and half a billion) is written in bfloat16; each format is loaded and trained for
--steps at rank 16 on 16 rows of 64 tokens, in a process of its own, whose largest resident size counts, loading
included. The bytes of its weights are compared with those that `lorakit check` would forecast.

loss: the built-in model is trained on rows of --data with each format, one seed after another; the held-out
loss before and after.
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

FORMATS = ("full", "nf4", "int4", "int8", "fp8")
# Layers of width 2048 with an MLP of 5632: TinyLlama's; and of Llama 3.2 3B.
SHAPES: dict[str, dict[str, int]] = {
    "1": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
    "3": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
    "experts": {
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "num_local_experts": 8,
        "vocab_size": 32000,
    },
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
    },
}
ROWS, TOKENS, RANK = 16, 64, 16


def make(folder: Path, shape: dict[str, int]) -> None:
    """A folder of random bfloat16 weights, one shard a block."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, MixtralConfig

    from lorakit.models import empty_model

    kind, name = (
        (MixtralConfig, "Mixtral") if "num_local_experts" in shape else (LlamaConfig, "Llama")
    )
    config: Any = kind(**shape, architectures=[f"{name}ForCausalLM"], dtype="bfloat16")
    config.save_pretrained(folder)
    Tokenizer(models.BPE(vocab={"a": 0, "</s>": 1}, merges=[])).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    state = in_files(empty_model(str(folder), dtype="bfloat16").state_dict())
    shards: dict[str, list[str]] = {}
    for name in state:
        parts = name.split(".")
        shards.setdefault(parts[2] if parts[1] == "layers" else "rest", []).append(name)
    generator, where = torch.Generator().manual_seed(0), {}
    for key, names in shards.items():
        tensors = {
            name: torch.randn(state[name].shape, generator=generator, dtype=torch.bfloat16) * 0.02
            for name in names
        }
        save_file(tensors, folder / f"model-{key}.safetensors", metadata={"format": "pt"})
        where |= dict.fromkeys(names, f"model-{key}.safetensors")
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def in_files(state: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a model by the names that published files have: Mixtral's a matrix an expert."""
    named: dict[str, Any] = {}
    for name, tensor in state.items():
        block, _, rest = name.partition(".mlp.")
        mixture = f"{block}.block_sparse_moe"
        if rest == "experts.gate_up_proj":
            for number, both in enumerate(tensor):
                first, third = both.chunk(2)
                named |= {f"{mixture}.experts.{number}.w1.weight": first}
                named |= {f"{mixture}.experts.{number}.w3.weight": third}
        elif rest == "experts.down_proj":
            named |= {f"{mixture}.experts.{n}.w2.weight": one for n, one in enumerate(tensor)}
        else:
            named[f"{mixture}.gate.weight" if rest == "gate.weight" else name] = tensor
    return named


def train_once(folder: Path, base_dtype: str, steps: int) -> dict[str, Any]:
    """In a process of its own: load, attach, train."""
    import torch

    from lorakit import LoraSpec, attach
    from lorakit.execution.runnable import Packed
    from lorakit.kernels.packed.counting import weight_bytes, workspace_bytes
    from lorakit.models import empty_model, load_model
    from lorakit.models.packable import bytes_held
    from lorakit.training import CausalLoss

    started = time.perf_counter()
    model, _ = load_model(str(folder), dtype="bfloat16", device="cpu", base_dtype=base_dtype)
    loaded, held = time.perf_counter() - started, weight_bytes(model) + workspace_bytes(model)
    after_loading = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    experts = ("experts",) if hasattr(model.config, "num_local_experts") else ()
    attach(model, LoraSpec(rank=RANK, target_parameters=experts))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    loss = CausalLoss(model)
    ids = torch.randint(model.config.vocab_size, (ROWS * TOKENS,))
    rows = Packed(ids, torch.arange(TOKENS).repeat(ROWS), [TOKENS] * ROWS)
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        hidden_TD = loss.runnable.hidden(rows, training=True)
        head = loss.runnable.head
        assert head is not None
        from lorakit.training.loss import head_loss

        head_loss(head, hidden_TD, ids.roll(-1)).div(len(ids)).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(round(time.perf_counter() - began, 3))
    return {
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_after_loading_bytes": after_loading,
        "weight_bytes": held,
        "forecast_bytes": bytes_held(empty_model(str(folder), dtype="bfloat16"), base_dtype),
        "fused_blocks": len(loss.runnable.fused_blocks),
        "load_seconds": round(loaded, 2),
        "step_seconds": seconds,
    }


def memory(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make(folder, SHAPES[options.parameters])
        for name in options.formats:
            command = [sys.executable, __file__, "once", str(folder), name, str(options.steps)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                raise SystemExit(run.stderr)
            found = json.loads(run.stdout.splitlines()[-1])
            write(options.out, {"parameters": options.parameters, "base_dtype": name, **found})


def loss(options: argparse.Namespace) -> None:
    import lorakit

    for seed in options.seeds:
        for name in options.formats:
            with tempfile.TemporaryDirectory() as made:
                command = ["train", "--data", *options.data, "--base-dtype", name, "--seed", seed]
                command += ["--epochs", options.epochs, "--samples", 0, "--out", f"{made}/run"]
                command += ["--max-rows", options.max_rows] if options.max_rows else []
                words = [sys.executable, "-m", "lorakit", *map(str, command)]
                run = subprocess.run(words, capture_output=True, text=True, check=False)
                if run.returncode:
                    raise SystemExit(run.stderr)
                result = json.loads((Path(made) / "run" / "result.json").read_text())
            figures = {k: v for k, v in result.items() if "loss" in k and isinstance(v, float)}
            write(options.out, {"base_dtype": name, "seed": seed, "data": options.data, **figures})
    assert lorakit


def write(out: Path | None, line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    if sys.argv[1:2] == ["once"]:
        print(json.dumps(train_once(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["memory", "loss"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--parameters", choices=SHAPES, default="1")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--data", nargs="+", default=[])
    parser.add_argument("--max-rows", type=int)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    memory(options) if options.what == "memory" else loss(options)


if __name__ == "__main__":
    main()
