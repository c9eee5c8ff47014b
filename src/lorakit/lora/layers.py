"""One frozen base layer and exactly one pair (A, B, s) beside it.

    LoraLayer
    ├── LoraLinear      torch.nn.Linear and its quantized kin, transformers' Conv1D (GPT-2)
    ├── LoraEmbedding   torch.nn.Embedding
    ├── LoraConv        torch.nn.Conv1d, Conv2d, Conv3d, groups included (conv.py)
    └── LoraExperts     bare parameters (experts.py)

No method here changes a weight. A and B are float32 (float64 over a float64 base), whatever the
base is kept in; the low-rank path computes in the dtype of the activations.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
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
from lorakit.lora.kinds import factor_of
from lorakit.lora.planning import Target
from lorakit.lora.rows import BaseRows
from lorakit.lora.spec import LoraSpec
from lorakit.lora.variant import Capability, require_capability

if TYPE_CHECKING:
    from lorakit.lora.acting import Acting


def packed_refusal(packing: str) -> str:
    """Why nothing is merged in memory into a packed weight."""
    return (
        f"the base is held in {packing}, and s·B·A added to that would mostly be "
        "rounded away: load the model without base_dtype to merge"
    )


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
        waits: the spec whose initialisation waits for training rows; see `initialising.py`.
        begun: copies of the tensors as they began, where B was not zero then.
        acting: says on which rows the pair acts, where that is not all of them.
    """

    kind: ClassVar[str]
    acting: "Acting | None" = None
    A: nn.Parameter
    B: nn.Parameter
    waits: LoraSpec | None = None
    begun: Mapping[str, Tensor] | None = None

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
        self._rows: BaseRows | None = None
        self._known: tuple[list[Tensor], Tensor | None] | None = None
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
        self.variant.initialise(self.tensors, self.rows, generator, geometry=self.geometry, how=how)

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
    def by_factor(self) -> bool:
        """Whether it computes f · (W x + s·B (A x)) + b with a factor for each output."""
        return Capability.FACTOR in self.variant.capabilities

    @property
    def rows(self) -> BaseRows:
        """The rows of the base's weight as the variant reads them."""
        if self._rows is None or self._rows.base is not self.base:
            self._rows = BaseRows(self.geometry, self.base)
        return self._rows

    def factor(self) -> Tensor | None:
        """F of each output, (out_features,), float32 at least; None where it is 1.

        Without gradients it is computed once for the same tensors: each token would cost a pass over W.
        """
        if torch.is_grad_enabled():
            return self.variant.factor(self.tensors, self.rows, self.scale)
        held = [self.rows.squares(), *(tensor.detach() for tensor in self.tensors.values())]
        if self._known is None or not all(map(torch.equal, self._known[0], held)):
            factor = self.variant.factor(self.tensors, self.rows, self.scale)
            self._known = [tensor.clone() for tensor in held], factor
        return self._known[1]

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
        weight = self.geometry.standard(self.weight)
        update = self.variant.delta(self.tensors, weight, self.scale)
        return self.geometry.standard(update).contiguous()

    def merged_base(self) -> nn.Module:
        """A new plain module with W + s·B·A, added in float32, in the base's dtype.

        Raises:
            TargetError: the base is quantized, or its layout cannot hold the product.
        """
        if isinstance(self.base, PackedLinear):
            raise TargetError(packed_refusal(self.base.packing_name))
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
            return F.linear(x, self.geometry.standard(weight), self.bias)
        return cast(Tensor, functional_call(self.base, {"weight": weight}, (x,)))

    def scaled(self, y: Tensor, inner: Tensor, axis: int = -1) -> Tensor:
        """Y + (f - 1) · inner: the part of y that f multiplies gets it.

        In 16 bits a factor near 1 would be rounded to it; what it differs from 1 by is not.

        Args:
            y: what the layer computes without the factor.
            inner: W x + s·B (A x), without the bias.
            axis: of the outputs.
        """
        factor = self.factor()
        if factor is None:
            return y
        beyond = (factor - 1).to(y.dtype)
        return torch.addcmul(y, inner, beyond.view(-1, *[1] * (-1 - axis)))

    def extra_repr(self) -> str:
        """What `print(model)` shows beside the base."""
        return f"rank={self.rank}, scale={self.scale:g}, dropout={self.dropout:g}"


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
            return self._by_factor(x) if self.by_factor else self.through_weight(x)
        if self.rounded is not None:
            packing = self.rounded.of(self.linear().frozen, self.A, self.B, self.scale)
            return rounded_linear(x, packing, self.bias, self.A, self.B, self.scale)
        dropping = self.training and self.dropout > 0.0
        if self.geometry.plain and not dropping:
            return linear(x, self.linear())
        return self.base(x) + self.low_rank(x)

    def _by_factor(self, x: Tensor) -> Tensor:
        """F · (W x + s·B (A x)) + b, over a base whose product is its own too.

        With dropout the base's W x stays whole, and what the factor adds is of the inputs that are left,
        as in peft.
        """
        if self.training and self.dropout > 0.0:
            kept = F.dropout(x, self.dropout)
            low = equations.low_rank(kept, self.A.to(x.dtype), self.B.to(x.dtype), self.scale)
            return self.scaled(self.base(x) + low, self._product(kept) + low)
        by_kernel = self.geometry.plain
        y = linear(x, self.linear()) if by_kernel else self.base(x) + self.low_rank(x)
        return self.scaled(y, y if self.bias is None else y - self.bias)

    def _product(self, x: Tensor) -> Tensor:
        """W x, without the bias."""
        if self.geometry.plain:
            return linear(x, Linear(self.geometry.frozen(self.base), None))
        y = self.base(x)
        return y if self.bias is None else y - self.bias

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
    """y[t] = c · (E[id_t] + s · B A[:, id_t]) over an embedding; A: (rank, vocabulary), B: (dim, rank).

    Dropout does not apply: the input is an index. c is 1 but for embeddings that scale what they look
    up, as Gemma's do.
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
        if not self.by_kernels and not self.by_factor:
            return self.through_weight(ids)
        y = self.base(ids)
        y = y + self.low_rank(ids).to(y.dtype)
        return self.scaled(y, y) if self.by_factor else y

    def low_rank(self, ids: Tensor) -> Tensor:
        """c · s · B A[:, id]: (…, dim), in the dtype of A and B."""
        h = F.embedding(ids, self.A.t(), padding_idx=self.base.padding_idx)
        return (h @ self.B.t()).mul(self.scale * self.lookup_scale)

    @cached_property
    def lookup_scale(self) -> float:
        """c."""
        return factor_of(self.base) or 1.0
