"""A quantized model folder -> an ordinary one, so that an adapter can be folded into it.

Every weight is what its packing stands for (lorakit.models.packed_files), in float32. What computes with
quantized activations (LLM.int8) only approximates these weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorakit.errors import ModelError
from lorakit.files import shards
from lorakit.files.header import StoredTensor
from lorakit.files.whole import write_json
from lorakit.kernels.packed.packing import whole
from lorakit.merging.merge_files import write_index
from lorakit.models import packed_files
from lorakit.models.files import read_config
from lorakit.models.weights import tensors_of


@dataclass(frozen=True)
class Dequantized:
    """What was done: the method in words, which weights, and the format config.json names."""

    method: str
    names: tuple[str, ...]
    dtype: torch.dtype

    @property
    def weights(self) -> int:
        """How many."""
        return len(self.names)


def quantization(folder: Path) -> Mapping[str, Any] | None:
    """A model folder's quantization_config, None of an ordinary one.

    Raises:
        ModelError: it is damaged.
    """
    return packed_files.quantization(read_config(folder), folder)


def dequantize(base: Path, folder: Path) -> Dequantized:
    """Write the weights and config.json of an ordinary model, the quantized ones in float32.

    One weight is in memory at a time; what was not quantized is copied byte for byte.

    Args:
        base: a folder with a quantization_config.
        folder: gets the files.

    Raises:
        ModelError: a method that is not known here, or files that do not fit it.
    """
    settings = quantization(base) or {}
    held = tensors_of(base)
    words = _words(settings)
    packed = {
        # By the name of a tensor that goes: the weight is written in the file that this one was in.
        tensor.uses[0]: tensor
        for tensor in packed_files.packed_tensors(settings, held, base)
    }
    _write(folder, held, packed)
    config = read_config(base)
    del config["quantization_config"]
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if named not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"{base}/config.json: dtype {named!r} is no format to merge into")
    write_json(folder / "config.json", config)
    names = tuple(f"{tensor.stem}.weight" for tensor in packed.values())
    return Dequantized(words, names, getattr(torch, named))


def _planned(tensor: packed_files.PackedTensor) -> shards.Planned:
    """The plain weight, read again when it is written: one is in memory at a time."""
    shape = tensor.read().shape
    parts = (shards.as_bytes(_plain(each)) for each in (tensor,))
    return shards.Planned(f"{tensor.stem}.weight", "F32", shape, parts, 4 * shape[0] * shape[1])


def _plain(tensor: packed_files.PackedTensor) -> Tensor:
    return whole(tensor.read(), torch.float32)


def _words(settings: Mapping[str, Any]) -> str:
    """The method, for people."""
    match settings.get("quant_method"):
        case "bitsandbytes" if settings.get("load_in_4bit") or settings.get("_load_in_4bit"):
            return "bitsandbytes 4 bits"
        case "bitsandbytes":
            return "bitsandbytes int8"
        case "gptq":
            return f"GPTQ {settings.get('bits')} bits"
        case other:
            return str(other)


def _write(
    folder: Path,
    held: Mapping[str, StoredTensor],
    packed: Mapping[str, packed_files.PackedTensor],
) -> None:
    """Files of the same names; each weight in the file that its quantized numbers were in."""
    used = {name for tensor in packed.values() for name in tensor.uses}
    written: dict[str, list[shards.Planned]] = {}
    for place in sorted(held.values(), key=lambda p: (p.file, p.entry.start)):
        there = written.setdefault(place.file.name, [])
        entry = place.entry
        if place.name in packed:
            there.append(_planned(packed[place.name]))
        elif place.name not in used:
            raw, size = shards.raw(place), entry.end - entry.start
            there.append(shards.Planned(place.name, entry.dtype, entry.shape, raw, size))
    for name, tensors in written.items():
        shards.write_stream(folder / name, tensors)
    write_index(folder, written)
