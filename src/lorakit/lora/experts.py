"""Pairs on bare parameters: the matrices of all experts of a block in one tensor.

    W: (E, out, in), or (E, in, out) where the module says `is_transposed`
    ΔW_e = s · B_e A_e            A: (E·r, in), rows by expert   B: (out, r·E), the expert innermost

That is the layout of peft's `target_parameters` (0.21, ParamWrapper). A matrix of two axes is one expert.
The model's own code goes on reading its parameter by name, and gets an `AdaptedWeight` there.
"""

from torch import Tensor, nn

from lorakit.errors import TargetError
from lorakit.kernels.adapted_weight import AdaptedWeight
from lorakit.kernels.packed.matrices import PackedMatrices
from lorakit.kernels.read_through import put_parameter, put_reader
from lorakit.lora.kinds import Geometry
from lorakit.lora.layers import LoraLayer, packed_refusal


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
    base: BareParameter | PackedMatrices

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

    def merged_base(self) -> nn.Module:
        """A new module with W + s·B·A.

        Raises:
            TargetError: the base is packed.
        """
        if isinstance(self.base, PackedMatrices):
            raise TargetError(packed_refusal(self.base.packing_name))
        return super().merged_base()


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

    Args:
        model: the model.
        path: of the parameter.
        layer: a `LoraExperts`, or what else gives the weight when it is called.
    """
    put_reader(model, path, layer)


def put_bare(model: nn.Module, path: str, base: BareParameter | PackedMatrices) -> None:
    """Put a parameter, or the packed matrices in its place, back where pairs were, in place."""
    if isinstance(base, PackedMatrices):
        put_reader(model, path, base)
    else:
        put_parameter(model, path, base.weight)


def bare_module(model: nn.Module, path: str) -> BareParameter | PackedMatrices:
    """A bare parameter as a module: the packed matrices in its place, where there are any."""
    owner_path, _, name = path.rpartition(".")
    owner = model.get_submodule(owner_path)
    held = owner._modules.get(name)
    if isinstance(held, PackedMatrices):
        return held
    return BareParameter(owner.get_parameter(name)).train(owner.training)
