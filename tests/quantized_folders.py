"""The folders of tests/quantized, copied and changed, and their models with plain weights."""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from families import tokenizer
from lorakit.kernels.packed.linear import PackedLinear

FOLDERS = sorted(p for p in (Path(__file__).parent / "quantized").iterdir() if p.is_dir())
IDS = torch.arange(7, 60)[None]
UP = "model.layers.0.mlp.up_proj"
GPTQ = ("qweight", "qzeros", "scales", "g_idx")


def folder_of(place, source):
    target = place / source.name
    shutil.copytree(source, target)
    (target / "expected.safetensors").unlink()
    tokenizer().save_pretrained(target)
    return target


def settings(folder, **changes):
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw["quantization_config"] |= changes
    path.write_text(json.dumps(raw))


def dense(source, dtype):
    """The model with the weights that the library unpacks, as plain transformers runs it."""
    config = AutoConfig.from_pretrained(source)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    held = load_file(source / "model.safetensors") | load_file(source / "expected.safetensors")
    names = set(model.state_dict()) - {"lm_head.weight"}
    model.load_state_dict({n: t for n, t in held.items() if n in names}, strict=False)
    assert names <= set(held)
    return model


def packed_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, PackedLinear)}


def digest(model):
    found = hashlib.sha256()
    for name, layer in packed_layers(model).items():
        for part, tensor in layer.packing.tensors.items():
            found.update(f"{name}.{part} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def edited(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
