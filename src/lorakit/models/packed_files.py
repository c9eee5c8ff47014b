"""The weights that a quantized folder holds packed: which there are, and how each is read.

A folder's config.json names the library that packed it (quant_method). What each layer's tensors are called
is that library's; which layers are packed is seen from the tensors, not from lists of exceptions. Sources
of the layouts are named in lorakit.kernels.packed.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakit.errors import ModelError
from lorakit.files.header import StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

    from lorakit.kernels.packed.packing import Packing

READ = "bitsandbytes, GPTQ, AWQ, compressed-tensors and fine-grained FP8"
UNPACKED = ("mxfp4",)
"""Methods whose folders transformers unpacks while it loads them."""
_STATE = ".quant_state.bitsandbytes__"
_FLOAT8 = "F8_E4M3"
# What compressed-tensors and others keep for activations or for the KV cache of a server.
_OF_ACTIVATIONS = (
    *("input_scale", "output_scale", "activation_scale", "input_zero_point", "input_global_scale"),
    *("k_scale", "v_scale", "q_scale", "k_proj.output_scale", "v_proj.output_scale"),
)
Held = Mapping[str, StoredTensor]


@dataclass(frozen=True)
class PackedTensor:
    """One packed weight of a folder.

    Attributes:
        stem: the name of its layer in the files, such as "model.layers.0.mlp.up_proj".
        uses: the names of the tensors that it is made of.
        make: reads them.
    """

    stem: str
    uses: tuple[str, ...]
    make: "Callable[[Callable[[str], Tensor]], Packing]"
    held: Held

    def read(self) -> "Packing":
        """Its packing, from the files.

        Raises:
            ModelError: a tensor is missing, or they do not fit one another.
        """
        from lorakit.files import shards

        def part(name: str) -> "Tensor":
            if f"{self.stem}.{name}" not in self.held:
                raise ModelError(f"the quantized weights lack {self.stem}.{name}")
            return shards.read_whole(self.held[f"{self.stem}.{name}"])

        try:
            return self.make(part)
        except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
            raise ModelError(
                f"{self.stem}: its quantized weight cannot be read: {error}"
            ) from error


def quantization(config: Mapping[str, Any], where: object) -> Mapping[str, Any] | None:
    """The quantization_config of a config.json, None of an ordinary one.

    Raises:
        ModelError: it is damaged.
    """
    found = config.get("quantization_config")
    if found is not None and not isinstance(found, dict):
        raise ModelError(f"{where}/config.json: quantization_config must be an object")
    return found


def packed_tensors(settings: Mapping[str, Any], held: Held, where: object) -> list[PackedTensor]:
    """The packed weights of a folder.

    Args:
        settings: its quantization_config.
        held: its tensors by name.
        where: the folder, for messages.

    Raises:
        ModelError: a method, or a variety of one, that is not read here; no tensor is packed.
    """
    method = settings.get("quant_method")
    match method:
        case "bitsandbytes" if settings.get("load_in_4bit") or settings.get("_load_in_4bit"):
            found = _bitsandbytes_4(held)
        case "bitsandbytes":
            found = _bitsandbytes_8(held)
        case "gptq":
            found = _gptq(held, settings)
        case "awq":
            found = _awq(held, settings)
        case "compressed-tensors":
            found = _compressed(held, settings)
        case "fp8":
            found = _fine_grained(held, settings)
        case "gguf":
            found = _blocks(held, settings)
        case _:
            raise ModelError(
                f"{where} is quantized by {method!r}, which lorakit does not read ({READ} it does): "
                "name the unquantized model that it was made from"
            )
    tensors = list(found)
    if not tensors:
        raise ModelError(f"{where} says that it is quantized ({method}), but no tensor is")
    return tensors


def beside(held: Held, packed: list[PackedTensor]) -> set[str]:
    """Names of tensors that a reader of packed weights has no use for: scales of activations."""
    stems = {tensor.stem for tensor in packed}
    return {
        name
        for name in held
        for ending in _OF_ACTIVATIONS
        if name.endswith(f".{ending}")
        and (
            name.removesuffix(f".{ending}") in stems or ending in ("k_scale", "v_scale", "q_scale")
        )
    }


def _stems(held: Held, ending: str) -> Iterator[str]:
    return (name.removesuffix(ending) for name in held if name.endswith(ending))


def _uses(held: Held, stem: str, *parts: str) -> tuple[str, ...]:
    return tuple(f"{stem}.{part}" for part in parts if f"{stem}.{part}" in held)


def _bitsandbytes_4(held: Held) -> Iterator[PackedTensor]:
    from lorakit.kernels.packed.bitsandbytes_blocks import FourBitBlocks, Nested

    endings = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    for state_name in (name for name in held if _STATE in name):
        weight, _, kind = state_name.partition(_STATE)
        stem = weight.removesuffix(".weight")

        def make(part: "Callable[[str], Tensor]", stem: str = stem, kind: str = kind) -> "Packing":
            state = json.loads(bytes(part(f"weight{_STATE}{kind}").tolist()))
            nested = None
            if f"{stem}.weight.nested_absmax" in held:
                two = part("weight.nested_quant_map"), part("weight.nested_absmax")
                nested = Nested(*two, int(state["nested_blocksize"]), float(state["nested_offset"]))
            three = part("weight").flatten(), part("weight.absmax"), part("weight.quant_map")
            rows, columns = state["shape"]
            size = int(state["blocksize"])
            return FourBitBlocks(*three, size, kind, (rows, columns), nested).checked()

        names = ("weight", *(f"weight.{ending}" for ending in endings))
        yield PackedTensor(stem, (state_name, *_uses(held, stem, *names)), make, held)


def _bitsandbytes_8(held: Held) -> Iterator[PackedTensor]:
    from lorakit.kernels.packed.scaled import ScaledBytes

    ints = (name for name, place in held.items() if place.entry.dtype == "I8")
    for stem in (name.removesuffix(".weight") for name in ints if name.endswith(".weight")):

        def make(part: "Callable[[str], Tensor]", stem: str = stem) -> "Packing":
            if f"{stem}.weight_format" in held and int(part("weight_format")) != 0:
                raise ModelError(f"{stem}.weight is kept in a tiled layout; save it again by rows")
            values = part("weight")
            scales = part("SCB").float()[:, None] / 127.0
            return ScaledBytes(values, scales, None, (1, values.shape[1])).checked()

        uses = _uses(held, stem, "weight", "SCB", "weight_format")
        yield PackedTensor(stem, uses, make, held)


def _gptq(held: Held, settings: Mapping[str, Any]) -> Iterator[PackedTensor]:
    from lorakit.kernels.packed.words import GptqWords

    layout = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if layout not in ("gptq", "gptq_v2") or settings.get("is_marlin_format"):
        raise ModelError(f"GPTQ's layout {layout!r} is not read here; gptq and gptq_v2 are")
    for stem in _stems(held, ".qweight"):

        def make(part: "Callable[[str], Tensor]", stem: str = stem) -> "Packing":
            q, groups = part("qweight"), None
            bits = settings.get("bits")
            if f"{stem}.g_idx" in held:
                groups = part("g_idx")
                bits = q.shape[0] * 32 / len(groups)  # a layer may have bits of its own
            if bits not in (2, 4, 8):
                raise ModelError(f"GPTQ with {bits} bits is not read here; 2, 4 and 8 are")
            two = part("qzeros"), part("scales")
            return GptqWords(q, *two, groups, int(bits), layout == "gptq").checked()

        uses = _uses(held, stem, "qweight", "qzeros", "scales", "g_idx")
        yield PackedTensor(stem, uses, make, held)


def _awq(held: Held, settings: Mapping[str, Any]) -> Iterator[PackedTensor]:
    from lorakit.kernels.packed.words import AwqWords

    layout = str(settings.get("version") or settings.get("format") or "gemm").lower()
    if layout != "gemm" or settings.get("bits", 4) != 4:
        raise ModelError(
            f"AWQ's layout {layout!r} with {settings.get('bits')} bits is not read here; gemm with 4 is"
        )
    for stem in _stems(held, ".qweight"):

        def make(part: "Callable[[str], Tensor]") -> "Packing":
            return AwqWords(part("qweight"), part("qzeros"), part("scales")).checked()

        yield PackedTensor(stem, _uses(held, stem, "qweight", "qzeros", "scales"), make, held)


def _compressed(held: Held, settings: Mapping[str, Any]) -> Iterator[PackedTensor]:
    from lorakit.kernels.packed.scaled import ScaledBytes
    from lorakit.kernels.packed.words import RowWords

    for ending in (".weight_g_idx", ".weight_global_scale", ".bitmask"):
        if stem := next(_stems(held, ending), None):
            raise ModelError(
                f"compressed-tensors' format {settings.get('format')!r} is not read here: it has "
                f"{stem}{ending} (pack-quantized, int-quantized and float-quantized are)"
            )
    for stem in _stems(held, ".weight_scale"):
        parts = ("weight", "weight_packed", "weight_shape", "weight_scale", "weight_zero_point")

        def make(part: "Callable[[str], Tensor]", stem: str = stem) -> "Packing":
            scales = part("weight_scale")
            has_zeros = f"{stem}.weight_zero_point" in held
            zeros = part("weight_zero_point") if has_zeros else None
            if f"{stem}.weight_packed" in held:
                packed, (out, width) = part("weight_packed"), part("weight_shape").tolist()
                bits = packed.shape[1] * 32 // width
                if scales.numel() == 1:
                    scales = scales.view(1, 1).expand(out, 1).contiguous()
                return RowWords(packed, scales, zeros, bits, width).checked()
            values = part("weight")
            block = _block(tuple(values.shape), tuple(scales.shape), settings)
            grid = tuple(-(-side // step) for side, step in zip(values.shape, block, strict=True))
            zeros = None if zeros is None else zeros.view(grid)
            return ScaledBytes(values, scales.view(grid), zeros, block).checked()

        yield PackedTensor(stem, _uses(held, stem, *parts), make, held)


def _block(
    shape: tuple[int, ...], scales: tuple[int, ...], settings: Mapping[str, Any]
) -> tuple[int, int]:
    """Rows and columns that share a scale, from the shapes and the settings of the groups."""
    out, width = shape
    if all(side == 1 for side in scales):
        return out, width
    if scales[0] == out and (len(scales) == 1 or width % scales[1] == 0):
        return 1, width // (scales[1] if len(scales) == 2 else 1)
    for group in settings.get("config_groups", {}).values():
        block = (group.get("weights") or {}).get("block_structure")
        if block and scales == tuple(-(-s // b) for s, b in zip(shape, block, strict=True)):
            return int(block[0]), int(block[1])
    raise ValueError(f"scales of {scales} for a weight of {shape}")


def _fine_grained(held: Held, settings: Mapping[str, Any]) -> Iterator[PackedTensor]:
    from lorakit.kernels.packed.scaled import ScaledBytes

    down, right = settings.get("weight_block_size") or (128, 128)
    for name, place in held.items():
        if place.entry.dtype != _FLOAT8 or not name.endswith(".weight"):
            continue
        stem = name.removesuffix(".weight")

        def make(part: "Callable[[str], Tensor]") -> "Packing":
            values, scales = part("weight"), part("weight_scale_inv")
            return ScaledBytes(values, scales, None, (int(down), int(right))).checked()

        uses = _uses(held, stem, "weight", "weight_scale_inv")
        yield PackedTensor(stem, uses, make, held)


def _blocks(held: Held, settings: Mapping[str, Any]) -> Iterator[PackedTensor]:
    """What gguf_packed.py writes."""
    from lorakit.kernels.packed.ggml import BLOCK_TYPES, GgmlBlocks

    for stem, kind in settings["types"].items():

        def make(part: "Callable[[str], Tensor]", kind: str = kind) -> "Packing":
            return GgmlBlocks(BLOCK_TYPES[kind], part("weight")).checked()

        yield PackedTensor(stem, _uses(held, stem, "weight"), make, held)
