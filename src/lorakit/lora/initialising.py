"""A and B of one layer at their beginning, and what of them is trained."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from lorakit.errors import TargetError
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.lora.initialisation import LayerStart
from lorakit.lora.layers import LoraLayer
from lorakit.lora.planning import Target
from lorakit.lora.spec import LoraSpec


def begin(
    layer: LoraLayer, spec: LoraSpec, generator: torch.Generator, evidence: Tensor | None = None
) -> None:
    """Initialise a layer's tensors so that ΔW = 0.

    Args:
        layer: just made.
        spec: as it was asked for.
        generator: of the CPU.
        evidence: of training rows, for an initialisation that needs them. Without it the layer begins as
            plain LoRA, and `layer.waits` says for what.

    Raises:
        TargetError: the base's weight cannot be read.
    """
    how = layer.target.start
    layer.reset(spec.init, generator)
    layer.begun, waits = None, how.rows is not None and evidence is None
    layer.waits = spec if waits else None
    if waits or how.fill is None or layer.A.is_meta:
        return
    # Of a FlatAdamW's views, and of tensors on another device, the values alone change.
    with torch.no_grad():
        at = LayerStart(
            lambda: base_weight(layer), layer.target.trained_rank, layer.scale, generator, evidence
        )
        A, B = (half.to(layer.A) for half in how.fill(at))
        if how.splits:
            A, B = torch.cat([A, A]), torch.cat([B, -B], 1)
        layer.A.copy_(A)
        layer.B.copy_(B)
    if layer.B.any():
        layer.begun = {name: x.detach().clone() for name, x in layer.tensors.items()}


def base_weight(layer: LoraLayer) -> Tensor:
    """W of a linear layer, (out, in), float32 (float64 of a float64 base); a packed one is dequantized.

    Raises:
        TargetError: it is held in a form that is not read here.
    """
    if isinstance(layer.base, PackedLinear):
        return layer.base.frozen.rows(0, layer.geometry.out_features)
    weight = layer.weight.detach()
    if not weight.dtype.is_floating_point:
        raise TargetError(
            f"init {layer.target.start.name} reads the weight of {layer.target.path}, a "
            f"{type(layer.base).__name__} of dtype {weight.dtype}: load the base unquantized, or take init "
            "kaiming"
        )
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return wide.t() if layer.geometry.transposed else wide


def is_changed(layer: LoraLayer) -> bool:
    """Whether a pair was trained or loaded since it began."""
    if layer.begun is None:
        return bool(layer.B.detach().any())
    return any(not torch.equal(x, layer.begun[name]) for name, x in layer.tensors.items())


def trained_elements(layer: LoraLayer) -> dict[nn.Parameter, Tensor]:
    """Of each tensor with elements that stay as they began, a mask: True where an element is trained."""
    how, rank = layer.target.start, layer.target.trained_rank
    masks: dict[nn.Parameter, Tensor] = {}
    for name, tensor in layer.tensors.items():
        if name in how.frozen:
            masks[tensor] = torch.zeros_like(tensor, dtype=torch.bool)
        elif how.splits and name in ("A", "B"):
            masks[tensor] = torch.ones_like(tensor, dtype=torch.bool)
            masks[tensor].narrow(0 if name == "A" else 1, rank, rank).zero_()
    return masks


def notes_of(targets: Collection[Target]) -> tuple[str, ...]:
    """What is said of an initialisation before the first step."""
    if not targets:
        return ()
    first = next(iter(targets))
    how = first.start
    if how.splits:
        return (
            f"init {how.name}: rank {first.trained_rank} is trained beside a copy of its beginning that stays, "
            f"so that the base keeps its bytes; the adapter holds and saves rank {first.rank}",
        )
    if how.frozen:
        return (f"init {how.name}: {' and '.join(sorted(how.frozen))} stays as it begins",)
    return ()
