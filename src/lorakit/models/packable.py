"""Which weights of a model `--base-dtype` packs, and how many bytes each format takes. Pure."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lorakit.models.spec import FULL

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorakit.kernels.packed.packing import Packing


def packed_as(name: str, weight_OI: "Tensor") -> "Packing":
    """A weight in one of the formats of `--base-dtype`."""
    from lorakit.kernels.packed.four_bits import FourBits
    from lorakit.kernels.packed.fp8 import Fp8
    from lorakit.kernels.packed.int8 import Int8

    makers: dict[str, Callable[[Tensor], Packing]] = {
        "nf4": FourBits.nf4,
        "int4": FourBits.int4,
        "int8": Int8.of,
        "fp8": Fp8.of,
    }
    return makers[name](weight_OI)


def layers_to_pack(model: "nn.Module") -> list[str]:
    """Paths of the linear layers that are packed: plain ones inside the blocks, routers left out.

    Args:
        model: of transformers, on the meta device if need be.
    """
    modules = dict(model.named_modules())
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    shared = _shared_weights(modules)
    counts = {_experts(module) for module in modules.values()} - {0}
    chosen = []
    for path, module in modules.items():
        if not _is_plain(module) or module is head or id(module.weight) in shared:
            continue
        if _inside_blocks(path, modules) and _sides(module)[0] not in counts:
            chosen.append(path)
    return chosen


def experts_to_pack(model: "nn.Module") -> dict[str, bool]:
    """Paths of the parameters that hold a matrix for each expert; whether it is kept as (in, out).

    Args:
        model: of transformers, on the meta device if need be.
    """
    modules = dict(model.named_modules())
    return {
        f"{path}.{name}": bool(getattr(module, "is_transposed", False))
        for path, module in modules.items()
        if _inside_blocks(path, modules)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and len(parameter) == _experts(module)
    }


def matrices_to_pack(model: Any) -> list[tuple[int, tuple[int, int], int]]:
    """How many matrices, their (out, in) and the bytes of a number, for each weight that is packed.

    Args:
        model: in full precision, or its outline on the meta device.
    """
    found = []
    for path in layers_to_pack(model):
        layer = model.get_submodule(path)
        found.append((1, _sides(layer), layer.weight.element_size()))
    for path, swapped in experts_to_pack(model).items():
        parameter = model.get_parameter(path)
        count, first, second = parameter.shape
        sides = (second, first) if swapped else (first, second)
        found.append((count, sides, parameter.element_size()))
    return found


def bytes_held(model: Any, name: str) -> int | None:
    """Bytes of a model's weights in a format of `--base-dtype`, the workspace of their products included.

    Args:
        model: in full precision, or its outline on the meta device.
        name: of the format; "full" for the weights as they are.

    Returns:
        None where no layer of it would be packed.
    """
    import torch

    from lorakit.kernels.packed.packing import nbytes
    from lorakit.kernels.packed.weight import LARGEST

    everything = sum(p.numel() * p.element_size() for p in model.parameters())
    if name == FULL:
        return everything
    matrices = matrices_to_pack(model)
    if not matrices:
        return None
    shapes = {shape for _, shape, _ in matrices}
    by_shape = {s: nbytes(packed_as(name, torch.empty(s, device="meta"))) for s in shapes}
    saved = sum(
        count * (math.prod(shape) * size - by_shape[shape]) for count, shape, size in matrices
    )
    largest = max(min(math.prod(shape), LARGEST) * size for _, shape, size in matrices)
    return everything - saved + largest


def bytes_unpacked(model: Any) -> dict[str, int]:
    """Bytes of what stays in full precision whatever the format, by what it is, the most first.

    Args:
        model: in full precision, or its outline on the meta device.
    """
    from torch import nn

    packed = {f"{path}.weight" for path in layers_to_pack(model)} | set(experts_to_pack(model))
    modules = dict(model.named_modules())
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    counts = {_experts(module) for module in modules.values()} - {0}
    found: dict[str, int] = {}
    for path, parameter in model.named_parameters():  # a tied one once, under its first name
        if path in packed:
            continue
        owner, _, name = path.rpartition(".")
        module = modules[owner]
        if isinstance(module, nn.Embedding):
            tied = head is not None and getattr(head, "weight", None) is parameter
            kind = "embeddings, which are the output head" if tied else "embeddings"
        elif module is head:
            kind = "the output head"
        elif parameter.dim() == 2 and len(parameter) in counts and _inside_blocks(path, modules):
            kind = "routers"
        elif parameter.dim() < 2:
            kind = "norms and biases"
        else:
            kind = name if name != "weight" else f"{owner.rpartition('.')[2]}.{name}"
        found[kind] = found.get(kind, 0) + parameter.numel() * parameter.element_size()
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def _is_plain(module: "nn.Module") -> bool:
    """Whether a module is a linear layer and nothing more."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return type(module) in (nn.Linear, Conv1D)


def _sides(layer: Any) -> tuple[int, int]:
    """(out, in) of a plain linear layer."""
    first, second = layer.weight.shape
    return (first, second) if hasattr(layer, "in_features") else (second, first)


def _inside_blocks(path: str, modules: "Mapping[str, nn.Module]") -> bool:
    """Whether a module stands in a list of modules."""
    from torch import nn

    parts = path.split(".")
    above = (".".join(parts[:length]) for length in range(1, len(parts)))
    return any(isinstance(modules.get(each), nn.ModuleList) for each in above)


def _shared_weights(modules: "Mapping[str, nn.Module]") -> set[int]:
    """Weights that stand in several modules."""
    seen: set[int] = set()
    shared: set[int] = set()
    for module in modules.values():
        for parameter in module.parameters(recurse=False):
            (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _experts(module: "nn.Module") -> int:
    """How many experts a module says it has, or holds in a list of that name."""
    from torch import nn

    names = ("num_experts", "moe_num_experts", "num_local_experts", "n_routed_experts")
    counts = [getattr(module, name, None) for name in names]
    listed = getattr(module, "experts", None)
    counts.append(len(listed) if isinstance(listed, nn.ModuleList) else None)
    return next((count for count in counts if isinstance(count, int) and count > 1), 0)
