"""One frozen base layer and exactly one pair (A, B, s) beside it.

    LoraLayer
    ├── LoraLinear      torch.nn.Linear and its quantized kin, transformers' Conv1D (GPT-2)
    ├── LoraEmbedding   torch.nn.Embedding
    └── LoraConv        torch.nn.Conv1d, Conv2d, Conv3d, groups included

No method here changes a weight. A and B are float32 (float64 over a float64 base), whatever the
base is kept in; the low-rank path computes in the dtype of the activations.
"""

import copy
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lorakit.errors import TargetError
from lorakit.kernels.block import linear
from lorakit.kernels.groups import Linear, LowRank
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.kernels.packed.through_rounding import RoundedSum, rounded_linear
from lorakit.lora import equations
from lorakit.lora.planning import Target
from lorakit.lora.spec import LoraSpec
from lorakit.lora.variant import Capability, require_capability

if TYPE_CHECKING:
    from lorakit.lora.acting import Acting


class LoraLayer(nn.Module, ABC):
    """A frozen `base` module with the pair A, B, the scale s, and what else the variant keeps.

    Attributes:
        base: the module that was there before; its parameters need no gradient.
        target: what the plan says of it: path, geometry, rank, alpha, scale.
        spec: the description that the whole adapter was made from; what is saved with it.
        A: (rank, in_features), or (rank, in_channels, *kernel).
        B: (out_features, rank), or (out_channels, rank, 1, …).
        scale: s, a plain number.
        variant: which tensors there are, and what they add to the weight.
        dropout: probability with which an input of the low-rank path is dropped in training.
        acting: says on which rows the pair acts, where that is not all of them.
    """

    kind: ClassVar[str]
    acting: "Acting | None" = None
    A: nn.Parameter
    B: nn.Parameter

    def __init__(self, base: nn.Module, target: Target, spec: LoraSpec) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.target = target
        self.spec = spec
        self.geometry = target.geometry
        self.rank = target.rank
        self.scale = target.scale
        self.dropout = spec.dropout
        weight = self.geometry.frozen(base)
        kept = weight.dtype if weight.dtype.is_floating_point else torch.float32
        dtype = torch.promote_types(kept, torch.float32)
        self.variant = target.variant
        self.by_position = Capability.POSITION in self.variant.capabilities
        if not self.by_kernels and not weight.dtype.is_floating_point:
            require_capability(
                *(self.variant, Capability.KERNELS, target.path),
                "load the base unquantized, so that its weight can be read",
                error=TargetError,
            )
        for name, shape in target.tensors.items():
            zeros = torch.zeros(shape, dtype=dtype, device=weight.device)
            self.register_parameter(name, nn.Parameter(zeros))

    def reset(self, how: str, generator: torch.Generator) -> None:
        """Initialise the tensors so that ΔW = 0, on the CPU: the same seed, the same bits."""
        weight = self._standard(self.weight.detach())
        self.variant.initialise(self.tensors, weight, generator, geometry=self.geometry, how=how)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """What the adapted layer computes."""

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The trained tensors by name: A, B, and what else the variant keeps."""
        return {name: self.get_parameter(name) for name in self.target.tensors}

    @property
    def by_kernels(self) -> bool:
        """Whether W x + s·B (A x) is all that it computes."""
        return Capability.KERNELS in self.variant.capabilities

    @property
    def weight(self) -> Tensor:
        """The base's own frozen weight: some model code reads a layer's weight directly."""
        return self.geometry.weight(self.base)

    @property
    def bias(self) -> Tensor | None:
        """The base's own frozen bias, or None."""
        return self.geometry.bias(self.base)

    def delta(self) -> Tensor:
        """ΔW in the layout of the base's weight, float32 (float64 over a float64 base)."""
        update = self.variant.delta(self.tensors, self._standard(self.weight), self.scale)
        return update.t().contiguous() if self._transposed else update

    def merged_base(self) -> nn.Module:
        """A new plain module with W + s·B·A, added in float32, in the base's dtype.

        Raises:
            TargetError: the base is quantized, or its layout cannot hold the product.
        """
        if isinstance(self.base, PackedLinear):
            raise TargetError(
                f"the base is held in {self.base.packing.name}, and s·B·A added to that would mostly be "
                "rounded away: load the model without base_dtype to merge"
            )
        weight = self.weight
        if not weight.dtype.is_floating_point:
            raise TargetError(
                f"a {type(self.base).__name__} of dtype {weight.dtype} cannot take s·B·A: "
                "load the base unquantized to merge"
            )
        update = self.delta()
        merged = copy.deepcopy(self.base)
        merged.weight = nn.Parameter(
            (weight.to(update.dtype) + update).to(weight.dtype), requires_grad=False
        )
        return merged

    def through_weight(self, x: Tensor) -> Tensor:
        """What the base computes with W + ΔW: right for every variant, and slow."""
        update = self.delta()
        weight = (self.weight.to(update.dtype) + update).to(self.weight.dtype)
        if isinstance(self.base, PackedLinear):
            return F.linear(x, weight, self.bias)
        return cast(Tensor, functional_call(self.base, {"weight": weight}, (x,)))

    def extra_repr(self) -> str:
        """What `print(model)` shows beside the base."""
        return f"rank={self.rank}, scale={self.scale:g}, dropout={self.dropout:g}"

    @property
    def _transposed(self) -> bool:
        """Whether the base keeps its weight as (in, out), as GPT-2 and embeddings do."""
        return self.geometry.transposed or self.geometry.kind == "embedding"

    def _standard(self, weight: Tensor) -> Tensor:
        """A weight of the base as (out, in, *kernel), as variants see it."""
        return weight.t() if self._transposed else weight


class LoraLinear(LoraLayer):
    """y = W x + b + s · B (A x) over a linear base layer.

    The kernels run over bases whose weight is a plain matrix; any other
    (quantized, subclassed) computes its own W x and the low-rank product is added.

    Attributes:
        rounded: set while it is trained for a quantized merge: it computes with W + s·B·A quantized.
    """

    kind = "linear"
    rounded: RoundedSum | None = None

    @property
    def in_features(self) -> int:
        """Width of x."""
        return self.geometry.in_features

    @property
    def out_features(self) -> int:
        """Width of y."""
        return self.geometry.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) -> (…, out_features)."""
        if not self.by_kernels:
            return self.through_weight(x)
        if self.rounded is not None:
            packing = self.rounded.of(self.linear().frozen, self.A, self.B, self.scale)
            return rounded_linear(x, packing, self.bias, self.A, self.B, self.scale)
        dropping = self.training and self.dropout > 0.0
        if self.geometry.plain and not dropping:
            return linear(x, self.linear())
        return self.base(x) + self.low_rank(x)

    @property
    def fits(self) -> bool:
        """Whether the fused blocks may compute it: a plain weight, a plain pair, no dropout or rounding."""
        plain = self.geometry.plain and not self.geometry.transposed and self.rounded is None
        return plain and self.by_kernels and not self.dropout

    def linear(self) -> Linear:
        """Its tensors as the kernels take them."""
        return Linear(self.geometry.frozen(self.base), self.bias, (self.pair(),))

    def pair(self, rows: tuple[int, int] | None = None) -> LowRank:
        """The pair as the kernels take it, for these rows or for all."""
        on_N = None if self.acting is None else self.acting.now
        unlike = bool(self.spec.rank_pattern)
        return LowRank(self.A, self.B, self.scale, rows, unlike=unlike, on=on_N)

    def low_rank(self, x: Tensor) -> Tensor:
        """s · B (A x), with dropout on x in training: (…, out_features)."""
        low = F.dropout(x, self.dropout, self.training)
        y = equations.low_rank(low, self.A.to(x.dtype), self.B.to(x.dtype), self.scale)
        on_N = None if self.acting is None else self.acting.on(x)
        return y if on_N is None else y * on_N.view(*y.shape[:-1], 1)


class LoraEmbedding(LoraLayer):
    """y[t] = E[id_t] + s · B A[:, id_t] over an embedding; A: (rank, vocabulary), B: (dim, rank).

    Dropout does not apply: the input is an index.
    """

    kind = "embedding"
    base: nn.Embedding

    @property
    def embedding_dim(self) -> int:
        """Width of y."""
        return self.geometry.out_features

    @property
    def num_embeddings(self) -> int:
        """Size of the vocabulary."""
        return self.geometry.in_features

    def forward(self, ids: Tensor) -> Tensor:
        """(…) ids -> (…, dim)."""
        if not self.by_kernels:
            return self.through_weight(ids)
        y = self.base(ids)
        return y + self.low_rank(ids).to(y.dtype)

    def low_rank(self, ids: Tensor) -> Tensor:
        """s · B A[:, id]: (…, dim), in the dtype of A and B."""
        h = F.embedding(ids, self.A.t(), padding_idx=self.base.padding_idx)
        return (h @ self.B.t()).mul(self.scale)


class LoraConv(LoraLayer):
    """y = conv(x; W) + s · conv1(conv(x; A); B), conv1 having kernel 1 and the base's groups.

    A sees every input channel even where the base is grouped, as in peft's format; such a pair
    has no equal in the base's layout and so cannot be merged.
    """

    kind = "conv"
    base: nn.Conv1d | nn.Conv2d | nn.Conv3d

    def delta(self) -> Tensor:
        """ΔW: (out_channels, in_channels, *kernel).

        Raises:
            TargetError: the base is grouped.
        """
        if self.base.groups > 1:
            raise TargetError(
                f"a convolution with groups={self.base.groups} cannot take s·B·A: A mixes all "
                "input channels and the base's weight has no place for that; keep it unmerged"
            )
        return super().delta()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, *size) -> (N, out_channels, *size')."""
        if not self.by_kernels:
            return self.through_weight(x)
        base = self.base
        conv = (F.conv1d, F.conv2d, F.conv3d)[base.weight.dim() - 3]
        low = F.dropout(x, self.dropout, training=self.training)
        h = conv(low, self.A.to(x.dtype), None, base.stride, base.padding, base.dilation)
        return base(x) + self.scale * conv(h, self.B.to(x.dtype), groups=base.groups)
