"""Pairs on bare parameters: the matrices of all experts of a block in one tensor.

    W: (E, out, in), or (E, in, out) where the module says `is_transposed`
    ΔW_e = s · B_e A_e            A: (E·r, in), rows by expert   B: (out, r·E), the expert innermost

That is the layout of peft's `target_parameters` (0.21, ParamWrapper). A matrix of two axes is one expert.
The model's own code goes on reading its parameter by name, and gets an `AdaptedWeight` there.
"""

from functools import partial
from typing import cast

from torch import Tensor, nn

from lorakit.kernels.adapted_weight import AdaptedWeight
from lorakit.lora.kinds import Geometry
from lorakit.lora.layers import LoraLayer


class BareParameter(nn.Module):
    """A frozen parameter alone, in the place of a base layer."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight


class LoraExperts(LoraLayer):
    """W_e + s·B_e A_e for every expert e of one bare parameter.

    It has no input of its own: calling it gives the tensor that the model's code multiplies by.
    """

    kind = "experts"
    base: BareParameter

    def forward(self, x: Tensor | None = None) -> Tensor:
        """The weight with its pairs, (E, out, in) or (E, in, out), as the base keeps it."""
        left, right = self.factors()
        return AdaptedWeight.of(self.weight, left, right, self.scale)

    def factors(self) -> tuple[Tensor, Tensor]:
        """L (E, m, r) and R (E, r, n) with ΔW = s·L·R in the layout of the base's (E, m, n)."""
        return expert_factors(self.A, self.B, self.geometry, self.weight.dim())

    def delta(self) -> Tensor:
        """ΔW in the layout of the base's weight, float32 (float64 over a float64 base)."""
        left, right = self.factors()
        return self.scale * (left @ right)


def expert_factors(
    A: Tensor, B: Tensor, geometry: Geometry, axes: int = 3
) -> tuple[Tensor, Tensor]:
    """L and R with ΔW = s·L·R in the layout of the base's weight.

    Args:
        A: (E·r, in).
        B: (out, r·E).
        geometry: of the bare parameter.
        axes: of the weight: 3, or 2 for a single matrix.

    Returns:
        (E, m, r) and (E, r, n), without E for a single matrix.
    """
    count = geometry.experts
    A_ERI = A.view(count, -1, A.shape[1])
    B_EOR = B.view(B.shape[0], -1, count).permute(2, 0, 1)
    left, right = (A_ERI.mT, B_EOR.mT) if geometry.swapped else (B_EOR, A_ERI)
    return (left[0], right[0]) if axes == 2 else (left, right)


def put_experts(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Let the module that owns a parameter read it with its pairs, in place.

    The module keeps its weights and its code; its class gets the parameter's name as a property.

    Args:
        model: the model.
        path: of the parameter.
        layer: calling it gives the weight with its pairs: a `LoraExperts`, or what a server has.
    """
    owner_path, _, name = path.rpartition(".")
    owner = model.get_submodule(owner_path)
    owner._parameters[name] = None  # its place in their order stays
    owner._modules[name] = layer
    _read_through(owner, name)


def put_parameter(model: nn.Module, path: str, weight: nn.Parameter) -> None:
    """Put a plain parameter back where pairs were, in place."""
    owner_path, _, name = path.rpartition(".")
    owner = model.get_submodule(owner_path)
    owner._modules.pop(name, None)
    adapted = type(owner)
    if name not in adapted.__dict__.get(_READ, ()):
        owner._parameters[name] = weight
        return
    read = [other for other in adapted.__dict__.get(_READ, ()) if other != name]
    owner.__class__ = adapted.__bases__[0]
    owner._parameters[name] = weight
    for other in read:
        _read_through(owner, other)


_READ = "_read_with_pairs"


def _read_through(owner: nn.Module, name: str) -> None:
    cls = type(owner)
    names = cls.__dict__.get(_READ, ())
    if name in names:
        return
    base = cls.__bases__[0] if names else cls
    read = (*names, name)
    owner.__class__ = _class_of(base, read)


def _with_pairs(name: str, owner: nn.Module) -> Tensor:
    layer = owner._modules[name]
    assert layer is not None
    return cast(Tensor, layer())


_classes: dict[tuple[type, tuple[str, ...]], type] = {}


def _class_of(base: type, names: tuple[str, ...]) -> type:
    """The class with a property for each name, one and the same for all modules of a class."""
    key = (base, names)
    if key not in _classes:
        properties = {name: property(partial(_with_pairs, name)) for name in names}
        own = {_READ: names, "__module__": base.__module__, "__qualname__": base.__qualname__}
        _classes[key] = type(base.__name__, (base,), {**properties, **own})
    return _classes[key]
