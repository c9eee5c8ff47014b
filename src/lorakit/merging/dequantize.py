"""A quantized model folder -> an ordinary one, so that an adapter can be folded into it.

    bitsandbytes int8    W = q · SCB / 127, row by row
    bitsandbytes 4 bits  W = map[q] · absmax, block by block of the flattened weight; absmax itself is
                         kept in 8 bits the same way, plus an offset, where it is nested
    GPTQ 2, 4, 8 bits    Wᵀ = scales · (q - zeros), group by group of input features

in float32. What computes with quantized activations (LLM.int8) only approximates these weights.

Sources: Dettmers et al., arXiv 2208.07339 and 2305.14314; Frantar et al., arXiv 2210.17323; the
layouts are those of bitsandbytes' and AutoGPTQ's files.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorakit.errors import ModelError
from lorakit.files import shards
from lorakit.files.header import StoredTensor
from lorakit.files.whole import write_json
from lorakit.merging.merge_files import write_index
from lorakit.models.files import read_config
from lorakit.models.weights import tensors_of

_STATE = ".quant_state.bitsandbytes__"
# Beside the weights, by their endings: taken in while these are made, and not written.
_PARTS_4BIT = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_PARTS_INT8 = (".SCB", ".weight_format")
_PARTS_GPTQ = (".qzeros", ".scales", ".g_idx")


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
    found = read_config(folder).get("quantization_config")
    if found is not None and not isinstance(found, dict):
        raise ModelError(f"{folder}/config.json: quantization_config must be an object")
    return found


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
    method = settings.get("quant_method")
    held = tensors_of(base)
    match method:
        case "bitsandbytes" if settings.get("load_in_4bit") or settings.get("_load_in_4bit"):
            words, makers = "bitsandbytes 4 bits", _four_bits(held)
        case "bitsandbytes":
            words, makers = "bitsandbytes int8", _int8(held)
        case "gptq":
            words, makers = f"GPTQ {settings.get('bits')} bits", _gptq(held, settings)
        case _:
            raise ModelError(
                f"{base} is quantized by {method!r}, which cannot be dequantized here (bitsandbytes "
                "and GPTQ can): merge into the unquantized base, --force if the adapter was "
                "trained on this one"
            )
    if not makers:
        raise ModelError(f"{base} says that it is quantized ({words}), but no tensor is")
    _write(base, folder, held, makers)
    config = read_config(base)
    del config["quantization_config"]
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if named not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"{base}/config.json: dtype {named!r} is no format to merge into")
    write_json(folder / "config.json", config)
    names = tuple(maker.name for maker in makers.values())
    return Dequantized(words, names, getattr(torch, named))


@dataclass(frozen=True)
class _Maker:
    """How one weight is made: its name and shape in the new folder, what it needs, and the rule."""

    name: str
    shape: tuple[int, ...]
    uses: tuple[str, ...]
    make: Callable[[], Tensor]

    def planned(self) -> shards.Planned:
        size = 4
        for side in self.shape:
            size *= side
        parts = (shards.as_bytes(tensor()) for tensor in (self._checked,))
        return shards.Planned(self.name, "F32", self.shape, parts, size)

    def _checked(self) -> Tensor:
        made = self.make().float()
        if tuple(made.shape) != self.shape:
            raise ModelError(f"{self.name} comes out as {tuple(made.shape)}, not {self.shape}")
        return made


def _write(
    base: Path, folder: Path, held: Mapping[str, StoredTensor], makers: Mapping[str, _Maker]
) -> None:
    """Files of the same names; each weight in the file that its quantized numbers were in."""
    used = {name for maker in makers.values() for name in maker.uses}
    written: dict[str, list[shards.Planned]] = {}
    for place in sorted(held.values(), key=lambda p: (p.file, p.entry.start)):
        there = written.setdefault(place.file.name, [])
        entry = place.entry
        if place.name in makers:
            there.append(makers[place.name].planned())
        elif place.name not in used:
            raw, size = shards.raw(place), entry.end - entry.start
            there.append(shards.Planned(place.name, entry.dtype, entry.shape, raw, size))
    for name, tensors in written.items():
        shards.write_stream(folder / name, tensors)
    write_index(folder, written)


def _read(held: Mapping[str, StoredTensor], name: str) -> Tensor:
    if name not in held:
        raise ModelError(f"the quantized weights lack {name}")
    return shards.read_whole(held[name])


def _int8(held: Mapping[str, StoredTensor]) -> dict[str, _Maker]:
    makers = {}
    for name, place in held.items():
        if not name.endswith(".weight") or place.entry.dtype != "I8":
            continue
        stem = name.removesuffix(".weight")
        uses = tuple(stem + part for part in _PARTS_INT8 if stem + part in held)

        def make(name: str = name, stem: str = stem) -> Tensor:
            layout = stem + ".weight_format"
            if layout in held and int(_read(held, layout)) != 0:
                raise ModelError(f"{name} is kept in a tiled layout; save it again by rows")
            return _read(held, name).float() * (_read(held, stem + ".SCB")[:, None] / 127.0)

        makers[name] = _Maker(name, place.entry.shape, uses, make)
    return makers


def _four_bits(held: Mapping[str, StoredTensor]) -> dict[str, _Maker]:
    makers = {}
    for state_name in (name for name in held if _STATE in name):
        name = state_name.split(_STATE)[0]
        state = json.loads(bytes(_read(held, state_name).tolist()))
        uses = (state_name, *(name + part for part in _PARTS_4BIT if name + part in held))

        def make(name: str = name, state: Mapping[str, Any] = state) -> Tensor:
            absmax = _read(held, name + ".absmax")
            if name + ".nested_absmax" in held:
                codes = _read(held, name + ".nested_quant_map")[absmax.long()]
                outer = _read(held, name + ".nested_absmax")
                absmax = _blockwise(codes, outer, int(state["nested_blocksize"]))
                absmax = absmax + float(state["nested_offset"])
            packed = _read(held, name).flatten()
            nibbles = torch.stack([packed >> 4, packed & 15], 1).flatten()  # the high half is first
            count = 1
            for side in state["shape"]:
                count *= side
            values = _read(held, name + ".quant_map").float()[nibbles[:count].long()]
            return _blockwise(values, absmax, int(state["blocksize"])).view(*state["shape"])

        makers[name] = _Maker(name, tuple(state["shape"]), uses, make)
    return makers


def _blockwise(values: Tensor, scales: Tensor, size: int) -> Tensor:
    """Each block of `size` numbers times its own scale; the last block may be short."""
    return values * scales.float().repeat_interleave(size)[: len(values)]


def _gptq(held: Mapping[str, StoredTensor], settings: Mapping[str, Any]) -> dict[str, _Maker]:
    bits = settings.get("bits")
    if bits not in (2, 4, 8):
        raise ModelError(f"GPTQ with {bits} bits cannot be dequantized here; 2, 4 and 8 can")
    # The first layout keeps zeros less one.
    add = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
    a_word, group = 32 // bits, int(settings.get("group_size", -1))
    makers = {}
    for quantized in (name for name in held if name.endswith(".qweight")):
        stem = quantized.removesuffix(".qweight")
        rows, columns = held[quantized].entry.shape
        uses = tuple(stem + part for part in _PARTS_GPTQ if stem + part in held)

        def make(stem: str = stem, inputs: int = rows * a_word) -> Tensor:
            q = _unpacked(_read(held, stem + ".qweight"), bits).transpose(1, 2)
            q = q.reshape(inputs, -1)  # (in, out): words lie along the inputs
            zeros = _unpacked(_read(held, stem + ".qzeros"), bits).flatten(1) + add
            if stem + ".g_idx" in held:
                groups = _read(held, stem + ".g_idx").long()
            else:
                groups = torch.arange(inputs) // (inputs if group < 0 else group)
            return (_read(held, stem + ".scales").float()[groups] * (q - zeros[groups])).T

        shape = (columns, rows * a_word)
        makers[quantized] = _Maker(f"{stem}.weight", shape, uses, make)
    return makers


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """(rows, columns) of 32-bit words -> (rows, columns, numbers in a word), the lowest bits first."""
    shifts = torch.arange(0, 32, bits)
    return (words.long()[..., None] >> shifts) & (2**bits - 1)
