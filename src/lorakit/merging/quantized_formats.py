"""The quantized folders that merging writes: bitsandbytes' NF4 and int8, as transformers saves and loads them.

    nf4     PATH.weight (bytes of two codes), .absmax, .quant_map, .quant_state.bitsandbytes__nf4
    int8    PATH.weight (int8), PATH.SCB (the largest element of each row), PATH.weight_format

Scales are kept in float32: QLoRA's scales of scales are read, not written. A block of rows is quantized
by itself, because every scale belongs to one row or to 64 elements in a row of the flattened weight.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from lorakit.errors import ConfigError, ModelError
from lorakit.files import shards
from lorakit.files.header import StoredTensor
from lorakit.kernels.packed.four_bits import NF4_LEVELS, FourBits
from lorakit.kernels.packed.int8 import Int8
from lorakit.kernels.packed.packing import Packing, whole

Rows = Callable[[int, int], Tensor]
"""Rows [start, stop) of a matrix, made when they are asked for."""

_BLOCK = 64
_STATE = ".quant_state.bitsandbytes__nf4"
_WIDEST = max(b - a for a, b in itertools.pairwise(NF4_LEVELS)) / 2


class Format(Protocol):
    """How the weights of a folder are quantized."""

    @property
    def name(self) -> Literal["nf4", "int8"]:
        """What people call it."""

    def step(self, width: int) -> int:
        """A block of rows starts at a multiple of this many."""

    def quantize(self, rows_RI: Tensor) -> Packing:
        """Quantize a block of rows."""

    def half_steps(self, rows_RI: Tensor) -> Tensor:
        """The most that quantizing may move each of these numbers: half its widest step."""

    def planned(
        self, name: str, shape: tuple[int, int], dtype: torch.dtype, rows: Rows
    ) -> list[shards.Planned]:
        """The tensors of one weight; `rows` gives its numbers, `dtype` is what it computes in."""

    def stored(
        self, held: Mapping[str, StoredTensor], name: str, shape: tuple[int, int]
    ) -> Packing:
        """One weight of a folder, in its packing."""

    def own(self, held: Mapping[str, StoredTensor], name: str) -> tuple[StoredTensor, ...] | None:
        """A weight's tensors in a base that keeps it just as it is written here; None in another."""

    def unread(self, places: Sequence[StoredTensor]) -> str | None:
        """A sentence on weights that a reader is known to read wrongly."""

    def settings(self, dtype: torch.dtype, skipped: Sequence[str]) -> dict[str, Any]:
        """`quantization_config`, for linear layers that compute in `dtype`, but for the skipped ones."""


def format_named(name: str) -> Format:
    """The format of this name.

    Raises:
        ConfigError: no folder of it is written; the text says what is.
    """
    if name in FORMATS:
        return FORMATS[name]
    if name in ("int4", "fp8"):
        raise ConfigError(
            f"--quantize {name}: transformers has no folder that keeps a weight as lorakit's {name} does, "
            "so that none is written; nf4 and int8 are, as bitsandbytes keeps them, and `lorakit export "
            "--to gguf --quantize` writes llama.cpp's formats"
        )
    raise ConfigError(
        f"--quantize {name!r} is no format that merging writes: give nf4, int8, or base for the base's own"
    )


def blocks(form: Format, shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """First and last-plus-one rows of blocks that may be quantized by themselves."""
    out, width = shape
    step = form.step(width)
    many = max(shards.BLOCK // max(width, 1) // step, 1) * step
    for start in range(0, out, many):
        yield start, min(start + many, out)


@dataclass(frozen=True)
class _Nf4:
    name: Literal["nf4"] = "nf4"

    def step(self, width: int) -> int:
        return _BLOCK // math.gcd(_BLOCK, width)

    def quantize(self, rows_RI: Tensor) -> Packing:
        return FourBits.nf4(rows_RI, double=False)

    def half_steps(self, rows_RI: Tensor) -> Tensor:
        flat = rows_RI.reshape(-1)
        filled = torch.nn.functional.pad(flat.abs(), (0, -len(flat) % _BLOCK)).view(-1, _BLOCK)
        scales = filled.amax(1).repeat_interleave(_BLOCK)[: len(flat)]
        return scales.view_as(rows_RI) * _WIDEST

    def planned(
        self, name: str, shape: tuple[int, int], dtype: torch.dtype, rows: Rows
    ) -> list[shards.Planned]:
        count = shape[0] * shape[1]
        scales: list[Tensor] = []  # filled while the codes are written, which come first

        def codes() -> Iterator[memoryview]:
            for start, stop in blocks(self, shape):
                packing = FourBits.nf4(rows(start, stop), double=False)
                scales.append(packing.scales)
                used = ((stop - start) * shape[1] + 1) // 2
                yield shards.as_bytes(packing.codes[:used])

        size = (count + 1) // 2
        state = {
            "quant_type": "nf4",
            "blocksize": _BLOCK,
            "dtype": str(dtype).removeprefix("torch."),
            "shape": list(shape),
        }
        text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        levels = torch.tensor(NF4_LEVELS)
        absmax = (shards.as_bytes(part) for part in scales)
        number = -(-count // _BLOCK)
        return [
            shards.Planned(name, "U8", (size, 1), codes(), size),
            shards.Planned(f"{name}.absmax", "F32", (number,), absmax, 4 * number),
            _small(f"{name}.quant_map", "F32", levels),
            _small(f"{name}{_STATE}", "U8", text),
        ]

    def stored(
        self, held: Mapping[str, StoredTensor], name: str, shape: tuple[int, int]
    ) -> Packing:
        codes = shards.read_whole(held[name]).flatten()
        spare = -(-shape[0] * shape[1] // _BLOCK) * (_BLOCK // 2) - len(codes)
        codes = torch.nn.functional.pad(codes, (0, spare))
        return FourBits("nf4", shape, codes, shards.read_whole(held[f"{name}.absmax"]))

    def own(self, held: Mapping[str, StoredTensor], name: str) -> tuple[StoredTensor, ...] | None:
        parts = [name, *(name + end for end in (".absmax", ".quant_map", _STATE))]
        if f"{name}.nested_absmax" in held:
            return None
        return _all(held, parts)

    def unread(self, places: Sequence[StoredTensor]) -> str | None:
        narrow = [place for place in places if place.entry.shape[1] % _BLOCK]
        if not narrow:
            return None
        return (
            f"{narrow[0].name} has rows of {narrow[0].entry.shape[1]}, which end within a block of {_BLOCK}: "
            "the kernel of bitsandbytes 0.50.2 for a CPU reads other numbers there; on a GPU they are right"
        )

    def settings(self, dtype: torch.dtype, skipped: Sequence[str]) -> dict[str, Any]:
        return _settings(skipped) | {
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
            "bnb_4bit_quant_storage": "uint8",
        }


@dataclass(frozen=True)
class _Int8:
    name: Literal["int8"] = "int8"

    def step(self, width: int) -> int:
        return 1

    def quantize(self, rows_RI: Tensor) -> Packing:
        return Int8.of(rows_RI)

    def half_steps(self, rows_RI: Tensor) -> Tensor:
        return (rows_RI.abs().amax(1, keepdim=True) / 254).expand_as(rows_RI)

    def planned(
        self, name: str, shape: tuple[int, int], dtype: torch.dtype, rows: Rows
    ) -> list[shards.Planned]:
        scales: list[Tensor] = []

        def quants() -> Iterator[memoryview]:
            for start, stop in blocks(self, shape):
                wide = rows(start, stop)
                scales.append(wide.abs().amax(1))
                yield shards.as_bytes(Int8.of(wide).quants)

        stem, size = name.removesuffix(".weight"), shape[0] * shape[1]
        largest = (shards.as_bytes(part) for part in scales)
        return [
            shards.Planned(name, "I8", shape, quants(), size),
            shards.Planned(f"{stem}.SCB", "F32", shape[:1], largest, 4 * shape[0]),
            _small(f"{stem}.weight_format", "U8", torch.tensor(0, dtype=torch.uint8)),
        ]

    def stored(
        self, held: Mapping[str, StoredTensor], name: str, shape: tuple[int, int]
    ) -> Packing:
        stem = name.removesuffix(".weight")
        return Int8(shards.read_whole(held[name]), shards.read_whole(held[f"{stem}.SCB"]) / 127)

    def own(self, held: Mapping[str, StoredTensor], name: str) -> tuple[StoredTensor, ...] | None:
        stem = name.removesuffix(".weight")
        return _all(held, (name, f"{stem}.SCB", f"{stem}.weight_format"))

    def unread(self, places: Sequence[StoredTensor]) -> str | None:
        return None

    def settings(self, dtype: torch.dtype, skipped: Sequence[str]) -> dict[str, Any]:
        return _settings(skipped) | {
            "load_in_4bit": False,
            "load_in_8bit": True,
            "llm_int8_threshold": 6.0,
            "llm_int8_has_fp16_weight": False,
        }


FORMATS: Mapping[str, Format] = {"nf4": _Nf4(), "int8": _Int8()}


def own_format(settings: Mapping[str, Any], held: Mapping[str, StoredTensor]) -> Format:
    """The format of a base that is quantized already, for `--quantize base`.

    Args:
        settings: its quantization_config.
        held: the tensors of its files.

    Raises:
        ModelError: it is none that merging writes.
    """
    method = settings.get("quant_method")
    if method == "bitsandbytes" and (settings.get("load_in_4bit") or settings.get("_load_in_4bit")):
        if states := [name for name in held if name.endswith(_STATE)]:
            for name in states:
                block = json.loads(bytes(shards.read_whole(held[name]).tolist())).get("blocksize")
                if block != _BLOCK:
                    raise ModelError(f"the base is quantized in blocks of {block}, {_NOT_WRITTEN}")
            return FORMATS["nf4"]
        kind = settings.get("bnb_4bit_quant_type", "fp4")
        raise ModelError(f"the base is quantized to {kind}, {_NOT_WRITTEN}")
    if method == "bitsandbytes":
        return FORMATS["int8"]
    raise ModelError(f"the base is quantized by {method}, {_NOT_WRITTEN}")


_NOT_WRITTEN = (
    "which merging does not write: give --quantize nf4 or int8, or leave --quantize out for a merged model "
    "in full precision"
)


def quantized_alike(form: Format, a: Tensor) -> Tensor:
    """What a block of rows is once it was quantized and read again, in float32."""
    return whole(form.quantize(a), torch.float32)


def _all(held: Mapping[str, StoredTensor], names: Sequence[str]) -> tuple[StoredTensor, ...] | None:
    return tuple(held[name] for name in names) if all(name in held for name in names) else None


def _small(name: str, code: str, tensor: Tensor) -> shards.Planned:
    data = shards.as_bytes(tensor)
    return shards.Planned(name, code, tuple(tensor.shape), [data], len(data))


def _settings(skipped: Sequence[str]) -> dict[str, Any]:
    # The list takes the place of transformers' own, so that it has to be whole.
    return {
        "quant_method": "bitsandbytes",
        "llm_int8_skip_modules": sorted(skipped) or None,
        "llm_int8_enable_fp32_cpu_offload": False,
    }
