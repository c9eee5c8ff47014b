"""Which modules can be adapted, and the geometry of each: one table.

Classes are known by their qualified name along the inheritance, so that the method needs no
import of transformers to know its `Conv1D`, nor of a quantization library whose linear layers
derive from `torch.nn.Linear`.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lorakit.errors import TargetError
from lorakit.kernels.packed.linear import PackedConv1D, PackedLinear
from lorakit.kernels.weights import FrozenWeight

_KINDS = {
    "torch.nn.modules.linear.Linear": "linear",
    "transformers.pytorch_utils.Conv1D": "conv1d",
    "lorakit.kernels.packed.linear.PackedConv1D": "conv1d",
    "torch.nn.modules.sparse.Embedding": "embedding",
    "torch.nn.modules.conv.Conv1d": "conv",
    "torch.nn.modules.conv.Conv2d": "conv",
    "torch.nn.modules.conv.Conv3d": "conv",
}
# Whose subclasses of Linear compute a product with a weight that they keep in fewer bits.
_QUANTIZED = ("transformers.integrations.", "bitsandbytes.", "torchao.", "compressed_tensors.")
_PLAIN = {
    "torch.nn.modules.linear.Linear",
    "transformers.pytorch_utils.Conv1D",
    "lorakit.kernels.packed.linear.PackedLinear",
    "lorakit.kernels.packed.linear.PackedConv1D",
}


@dataclass(frozen=True)
class Geometry:
    """The shape of an adaptable module.

    Attributes:
        kind: linear, conv1d (GPT-2's transposed linear), embedding, conv, or experts (a bare
            parameter that holds the matrices of all experts of a block).
        in_features: width of x; the vocabulary for an embedding; channels for a convolution.
        out_features: width of y.
        kernel: kernel size of a convolution, () elsewhere.
        groups: groups of a convolution, 1 elsewhere.
        dilated: a convolution whose kernel has gaps.
        plain: the weight is an ordinary matrix, so the fused path may read it.
        experts: matrices in a bare parameter, 0 elsewhere; each has a pair of its own.
        swapped: a bare parameter keeps each matrix as (in, out).
    """

    kind: str
    in_features: int
    out_features: int
    kernel: tuple[int, ...] = ()
    groups: int = 1
    plain: bool = False
    dilated: bool = False
    experts: int = 0
    swapped: bool = False

    @property
    def transposed(self) -> bool:
        """Whether the weight is kept as (in, out)."""
        return self.kind == "conv1d"

    @property
    def has_bias(self) -> bool:
        """Whether such a module may have a bias."""
        return self.kind not in ("embedding", "experts")

    def weight(self, base: nn.Module) -> Tensor:
        """The module's frozen weight."""
        return cast(Tensor, base.weight)

    def frozen(self, base: nn.Module) -> Tensor | FrozenWeight:
        """The weight as products take it, (out, in) of a linear layer; of a packed one nothing is read."""
        if isinstance(base, PackedLinear):
            return base.frozen
        return self.weight(base).t() if self.transposed else self.weight(base)

    def standard(self, weight: Tensor) -> Tensor:
        """A weight as its base keeps it -> (out, in, *kernel), as variants see it; or back."""
        return weight.t() if self.transposed or self.kind == "embedding" else weight

    def bias(self, base: nn.Module) -> Tensor | None:
        """The module's frozen bias, or None."""
        return cast("Tensor | None", base.bias) if self.has_bias else None

    def pair_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A and B at a rank.

        The pairs of experts lie in one A and one B, as in peft's format: A's rows by expert, B's
        columns by rank with the expert innermost.
        """
        if self.kind == "experts":
            return (self.experts * rank, self.in_features), (self.out_features, rank * self.experts)
        ones = (1,) * len(self.kernel)
        # peft's B is a grouped convolution: each group of outputs reads its share of the rank.
        return (
            (rank, self.in_features, *self.kernel),
            (self.out_features, rank // self.groups, *ones),
        )

    def rank_of(self, A: Tensor) -> int:
        """The rank of one pair, given A."""
        return A.shape[0] // max(self.experts, 1)

    def largest_rank(self) -> int:
        """min(in, out): a pair of higher rank spans nothing more."""
        return min(self.in_features * math.prod(self.kernel), self.out_features)


def kind_of(module: nn.Module) -> str | None:
    """The kind of an adaptable module, None for every other.

    A subclass is of its parent's kind if it computes the same: y = W x + b, from a quantized W too. A
    router that returns more, or a head that scales, is of none.
    """
    kind = next((_KINDS[name] for name in _qualified_names(module) if name in _KINDS), None)
    return None if kind in ("linear", "conv1d") and not _is_linear(module, kind) else kind


def _is_linear(module: nn.Module, kind: str) -> bool:
    """Whether a module of a linear class multiplies by its weight and adds its bias, no more."""
    own: Any = next(
        cls for cls in type(module).__mro__ if f"{cls.__module__}.{cls.__qualname__}" in _KINDS
    )
    if type(module).forward is own.forward or isinstance(module, PackedLinear):
        return True
    weight = module.weight
    quantized = (
        type(module).__module__.startswith(_QUANTIZED)
        or not isinstance(weight, Tensor)
        or type(weight) not in (Tensor, nn.Parameter)
        or not weight.is_floating_point()
        or weight.element_size() == 1
    )
    return quantized or _computes_product(module, kind)


def _computes_product(module: nn.Module, kind: str) -> bool:
    """Tried on a small weight in a copy of the module: its own weight may not be here."""
    small = copy.copy(module)
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(s, generator=generator) for s in ((5, 7), (5,), (3, 2, 7)))
    has_bias = module.bias is not None
    expected = x @ weight.T + (bias if has_bias else 0.0)
    small.__dict__["_parameters"] = {
        "weight": weight if kind == "linear" else weight.T.contiguous(),
        "bias": bias if has_bias else None,
    }
    small.__dict__ |= {"in_features": 7, "out_features": 5, "nf": 5, "nx": 7}
    try:
        with torch.no_grad():
            y = type(module).forward(small, x)
    # Whatever foreign code raises on another size.
    except Exception:
        return False
    return isinstance(y, Tensor) and y.shape == expected.shape and torch.allclose(y, expected)


def factor_of(module: nn.Embedding) -> float | None:
    """c where an embedding gives c times the row that it looks up, 1 for torch's own; None for any other.

    Tried on a small weight in a copy of the module, in its own number format: Gemma's c is rounded to that.
    What is on the meta device has no c to look at, and stands for 1.
    """
    if type(module).forward is nn.Embedding.forward:
        return 1.0
    small = copy.copy(module)
    weight = torch.arange(1.0, 16.0).view(5, 3)
    small.__dict__ |= {"num_embeddings": 5, "embedding_dim": 3, "padding_idx": None}
    small.__dict__["_buffers"] = dict(module._buffers)
    outlined = any(b is not None and b.is_meta for b in module._buffers.values())
    place = (
        torch.device("meta")
        if outlined
        else next(
            (b.device for b in module._buffers.values() if b is not None), torch.device("cpu")
        )
    )
    dtype = module.weight.dtype
    ids = torch.tensor([3, 1, 1, 0], device=place)
    small.__dict__["_parameters"] = {"weight": weight.to(place, dtype)}
    try:
        with torch.no_grad():
            rows = type(module).forward(small, ids)
    # Whatever foreign code raises on another size.
    except Exception:
        return None
    if not isinstance(rows, Tensor) or rows.shape != (4, 3):
        return None
    if outlined:
        return 1.0
    wide, expected = rows.float().cpu(), weight[ids.cpu()]
    factor = float(wide[-1, 0])
    close = torch.allclose(wide, factor * expected, rtol=4 * torch.finfo(dtype).eps, atol=0.0)
    return factor if close and factor else None


def geometry_of(module: nn.Module, path: str) -> Geometry:
    """The geometry of the module at `path`.

    Raises:
        TargetError: the module is of no adaptable kind, or a convolution pads otherwise than
            with zeros.
    """
    kind = kind_of(module)
    plain = next(_qualified_names(module)) in _PLAIN
    match module:
        case PackedConv1D():
            return Geometry("conv1d", module.in_features, module.out_features, plain=plain)
        case nn.Linear():
            return Geometry("linear", module.in_features, module.out_features, plain=plain)
        case nn.Embedding():
            if factor_of(module) is None:
                raise TargetError(
                    f"{path} is a {type(module).__name__}, an embedding that changes what it looks "
                    "up, and not by a factor alone: a pair beside it would not merge; leave it out"
                )
            return Geometry("embedding", module.num_embeddings, module.embedding_dim)
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            if module.padding_mode != "zeros":
                raise TargetError(
                    f"{path} pads with {module.padding_mode!r}; only zero padding can be adapted: "
                    "leave it out with exclude"
                )
            return Geometry(
                "conv",
                module.in_channels,
                module.out_channels,
                tuple(module.kernel_size),
                module.groups,
                dilated=any(
                    k > 1 and d > 1
                    for k, d in zip(module.kernel_size, module.dilation, strict=True)
                ),
            )
    if kind == "conv1d":
        rows, columns = module.get_parameter("weight").shape
        return Geometry("conv1d", rows, columns, plain=plain)
    raise TargetError(
        f"{path} is a {type(module).__name__}, which has no low-rank form here: "
        "linear layers, embeddings and convolutions have"
    )


def refuse_wrapped(modules: dict[str, nn.Module]) -> None:
    """peft's layers hold the base's layer and matrices of their own, which are linear layers too.

    transformers puts them into a model unsaid where adapter_config.json lies in its folder.

    Raises:
        TargetError: the model has some.
    """
    for path, module in modules.items():
        if type(module).__module__.startswith("peft.tuners."):
            raise TargetError(
                f"this model has an adapter of peft attached ({path} is {type(module).__name__} of "
                "peft), and its own matrices would be adapted: take model.unload() or "
                "model.merge_and_unload() of a PeftModel; where transformers loaded the adapter beside a "
                "model, take lorakit.load_model(FOLDER, ignore_adapter=True)"
            )


def _qualified_names(module: nn.Module) -> Iterator[str]:
    return (f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__)
