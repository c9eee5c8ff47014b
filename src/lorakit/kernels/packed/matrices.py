"""Packed matrices of experts: many of one shape, in the place of a parameter of three axes.

    y_g = x_g W_e        for the rows x_g of each group g and its expert e; dx_g = g W_eᵀ

Each W_e has a packing of its own. Their tensors lie one behind the other in common buffers, as the matrices
did in the parameter. What reads the parameter gets a `MatricesTensor`, which has its shape and no numbers:
picking experts and turning gives another one, the products that model code writes dequantize one expert after
the other into the common workspace, and whatever else is done with it is done with all of it dequantized.

Longer than 300 lines: the tensor, and every product in which it stands for a weight.

Legend: E experts, O and I rows and columns of a packed matrix, m and n those of a matrix as it is seen.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from lorakit.kernels.packed.held import HoldsPacked
from lorakit.kernels.packed.packing import Packing, whole
from lorakit.kernels.packed.weight import PackedWeight
from lorakit.kernels.read_through import OF_SHAPE, getter


class PackedMatrices(HoldsPacked):
    """The frozen matrices of all experts, packed one by one.

    Args:
        count: E.
        packings: of each matrix as (out, in), all of one shape; taken one after the other.
        dtype: the number format of the products.
        swapped: the model keeps each matrix as (in, out).
    """

    def __init__(
        self, count: int, packings: Iterable[Packing], dtype: torch.dtype, *, swapped: bool = False
    ) -> None:
        super().__init__()
        stacked: dict[str, Tensor] = {}
        outline: Packing | None = None
        for number, packing in enumerate(packings):
            if outline is None:
                tensors = packing.tensors
                stacked = {name: t.new_empty((count, *t.shape)) for name, t in tensors.items()}
                outline = packing.over({name: t.to("meta") for name, t in tensors.items()})
            for name, tensor in packing.tensors.items():
                stacked[name][number].copy_(tensor)
        if outline is None or number + 1 != count:
            raise ValueError(f"{count} matrices were to be packed, and others came")
        self._hold(outline, stacked, dtype)
        self.count, self.swapped = count, swapped

    @property
    def elements(self) -> int:
        """How many numbers they stand for."""
        return self.count * super().elements

    @property
    def matrix(self) -> tuple[int, int]:
        """(O, I) of each."""
        return self._packing.shape

    def packing(self, number: int) -> Packing:
        """Of one matrix, over the tensors as they are now."""
        return self._packing.over({name: tensor[number] for name, tensor in self.held.items()})

    def frozen(self, number: int) -> PackedWeight:
        """One matrix as the products take it."""
        return PackedWeight(self.packing(number), self._dtype)

    @property
    def weight(self) -> "MatricesTensor":
        """All of them as the model's code sees its parameter."""
        return MatricesTensor.of(self, None, self.swapped)

    def forward(self) -> "MatricesTensor":
        """What the module that owns the parameter multiplies by."""
        return self.weight

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.count} x {self.matrix}, packing={self.packing_name}"


class MatricesTensor(Tensor):
    """Packed matrices in the place of a weight. A pass around what is known here would give NaN.

    Attributes:
        holder: of the matrices.
        chosen: which of them: all (None), some by number (a tensor), or one as a matrix (an int).
        turned: each is seen as the transpose of what is packed.
    """

    holder: PackedMatrices
    chosen: Tensor | int | None
    turned: bool

    @classmethod
    def of(
        cls, holder: PackedMatrices, chosen: Tensor | int | None, turned: bool
    ) -> "MatricesTensor":
        """Of these parts; nothing is copied or unpacked."""
        sides = tuple(reversed(holder.matrix)) if turned else holder.matrix
        lead: tuple[int, ...] = () if isinstance(chosen, int) else (holder.count,)
        if isinstance(chosen, Tensor):
            lead = (len(chosen),)
        device = next(iter(holder.held.values())).device
        nothing = torch.full((), torch.nan, dtype=holder._dtype, device=device)
        made = torch.Tensor._make_subclass(cls, nothing.expand(*lead, *sides))
        made.holder, made.chosen, made.turned = holder, chosen, turned
        return made

    def formed(self) -> Tensor:
        """All of it dequantized, as a new tensor: right for anything, and large."""
        numbers = [self.chosen] if isinstance(self.chosen, int) else self.numbers()
        kept = [whole(self.holder.packing(each), self.holder._dtype) for each in numbers]
        weight = kept[0] if isinstance(self.chosen, int) else torch.stack(kept)
        return weight.mT if self.turned else weight

    def numbers(self) -> list[int]:
        """Which matrices it has, in order."""
        if isinstance(self.chosen, Tensor):
            return cast(list[int], self.chosen.tolist())
        return list(range(self.holder.count))

    def other_way(self) -> "MatricesTensor":
        """Its last two axes exchanged."""
        return MatricesTensor.of(self.holder, self.chosen, not self.turned)

    def grouped(self, x_TM: Tensor, sizes: Sequence[int]) -> Tensor:
        """x_g W_g for the rows of each group, a group for each matrix; rows past the last give 0: (T, n)."""
        numbers = [self.chosen] if isinstance(self.chosen, int) else self.numbers()
        frozen = [
            self.holder.frozen(number) if size else None
            for number, size in zip(numbers, sizes, strict=True)
        ]
        return cast(Tensor, _Grouped.apply(x_TM, frozen, self.turned, sizes, self.shape[-1]))

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What a function of torch gives for it: by a way known here, else with the dequantized weight."""
        given = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            if func in _OF_OUTLINE:
                return func(*args, **given)
            known = _KNOWN.get(func)
            answer = known(*args, **given) if known is not None else NotImplemented
            if answer is not NotImplemented:
                return answer
            name = getattr(func, "__name__", "")
            if name.endswith("_") and not name.endswith("__") and isinstance(args[0], cls):
                raise TypeError(f"{name} would change a frozen weight")
            return func(*tree_map(dense, tuple(args)), **tree_map(dense, given))


def dense(value: Any) -> Any:
    """A packed tensor dequantized; anything else as it is."""
    return value.formed() if isinstance(value, MatricesTensor) else value


def called(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A function of torch where functions of subclasses are switched off: packed tensors keep their own."""
    if any(isinstance(value, MatricesTensor) for value in args):
        return MatricesTensor.__torch_function__(func, (MatricesTensor,), args, kwargs)
    return func(*args, **kwargs)


class _Grouped(torch.autograd.Function):
    """x_g W_g for the rows of each group, with its backward; the weights are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TM: Tensor,
        frozen: Sequence[PackedWeight | None],
        turned: bool,
        sizes: Sequence[int],
        columns: int,
    ) -> Tensor:
        ctx.frozen, ctx.turned, ctx.sizes = frozen, turned, sizes
        return _multiplied(x_TM, frozen, turned, sizes, columns)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows = next((each.shape for each in ctx.frozen if each is not None), (0, 0))
        columns = rows[0] if not ctx.turned else rows[1]
        grad_x = _multiplied(grad.contiguous(), ctx.frozen, not ctx.turned, ctx.sizes, columns)
        return grad_x, None, None, None, None


def _multiplied(
    x_TM: Tensor,
    frozen: Sequence[PackedWeight | None],
    turned: bool,
    sizes: Sequence[int],
    columns: int,
) -> Tensor:
    """x_g W_g, or x_g W_gᵀ where `turned`, W_g as it is packed."""
    if len(sizes) == 1 and sizes[0] == len(x_TM) and frozen[0] is not None:
        return frozen[0].product(x_TM) if turned else frozen[0].input_gradient(x_TM)
    y_TN = x_TM.new_zeros(len(x_TM), columns)
    start = 0
    for size, weight in zip(sizes, frozen, strict=True):
        if weight is not None:
            x, y = x_TM[start : start + size], y_TN[start : start + size]
            if turned:
                weight.add_product(y, x)
            else:
                weight.add_input_gradient(y, x)
        start += size
    return y_TN


def _picked(weight: Any, index: Any) -> Any:
    """Some of its experts: an index into the first axis alone."""
    if not isinstance(weight, MatricesTensor) or isinstance(weight.chosen, int):
        return NotImplemented
    if isinstance(index, Tensor) and (index.dim() > 1 or index.is_floating_point()):
        return NotImplemented
    if not isinstance(index, int | slice | Tensor) or isinstance(index, bool):
        return NotImplemented
    if isinstance(index, Tensor) and index.dtype == torch.bool:
        return NotImplemented
    all_of = torch.arange(weight.holder.count) if weight.chosen is None else weight.chosen
    index = index.to(all_of.device) if isinstance(index, Tensor) else index
    some = all_of[index]
    one = int(some) if some.dim() == 0 else some
    return MatricesTensor.of(weight.holder, one, weight.turned)


def _each(weight: Any, dim: int = 0) -> Any:
    if isinstance(weight.chosen, int) or dim:
        return NotImplemented
    return tuple(MatricesTensor.of(weight.holder, n, weight.turned) for n in weight.numbers())


def _transposed(weight: Any, first: int, second: int) -> Any:
    axes = weight.dim()
    if {first % axes, second % axes} != {axes - 2, axes - 1}:
        return NotImplemented
    return weight.other_way()


def _turned(weight: Any) -> Any:
    return weight.other_way() if weight.dim() == 2 else NotImplemented


def _to(value: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(value, MatricesTensor):  # another tensor in the format of this one
        others = tuple((a.device, a.dtype) if isinstance(a, MatricesTensor) else a for a in args)
        flat = [x for a in others for x in (a if isinstance(a, tuple) else (a,))]
        return value.to(*flat, **kwargs)
    small = torch.empty(0, dtype=value.dtype, device=value.device)
    moved = small.to(*args, **kwargs)
    same = moved.dtype == value.dtype and moved.device == value.device
    return value if same else NotImplemented


def _times(x: Tensor, weight: Any) -> Tensor:
    """x W for one matrix: (…, m) -> (…, n)."""
    rows = x.reshape(-1, x.shape[-1])
    y = weight.grouped(rows, [len(rows)])
    return cast(Tensor, y.view(*x.shape[:-1], weight.shape[-1]))


def _batched(x_GTM: Tensor, weight: Any) -> Tensor:
    """x_g W_g for a matrix for each g: (G, T, n). Each matrix is dequantized once."""
    many, numbers = x_GTM.shape[1], torch.tensor(weight.numbers())
    experts, counts = torch.unique(numbers, return_counts=True)
    order = torch.argsort(numbers, stable=True).to(x_GTM.device)
    sizes = [count * many for count in counts.tolist()]
    once = MatricesTensor.of(weight.holder, experts, weight.turned)
    y = once.grouped(x_GTM[order].flatten(0, 1), sizes).view(*x_GTM.shape[:2], -1)
    return y[torch.argsort(order)]


def _linear(x: Any, weight: Any, bias: Tensor | None = None) -> Any:
    if isinstance(x, MatricesTensor) or not isinstance(weight, MatricesTensor) or weight.dim() != 2:
        return NotImplemented
    y = _times(x, weight.other_way())
    return y if bias is None else y + bias


def _product(first: Any, second: Any) -> Any:
    if isinstance(first, MatricesTensor):
        if isinstance(second, MatricesTensor) or second.dim() < 2:
            return NotImplemented
        answer = _product(second.mT, first.other_way())
        return answer if answer is NotImplemented else answer.mT
    if second.dim() == 2:
        return _times(first, second) if first.dim() else NotImplemented
    same = first.dim() == 3 and len(first) == len(second)
    return _batched(first, second) if same else NotImplemented


def _product_from_right(second: Any, first: Any) -> Any:
    return _product(first, second)


def _grouped(x: Any, weight: Any, offs: Any = None, **more: Any) -> Any:
    known = isinstance(weight, MatricesTensor) and not isinstance(x, MatricesTensor)
    if not known or offs is None or x.dim() != 2 or weight.dim() != 3:
        return NotImplemented
    if any(value is not None for value in more.values()):
        return NotImplemented
    stops = offs.tolist()
    return weight.grouped(x, [b - a for a, b in zip((0, *stops[:-1]), stops, strict=True)])


def _itself(weight: Any, *args: Any, **kwargs: Any) -> Any:
    return weight


def _iterated(weight: Any) -> Iterator[Any]:
    return cast(Iterator[Any], NotImplemented if weight.dim() == 2 else iter(_each(weight)))


_OF_OUTLINE = {
    *OF_SHAPE,
    *(getter(name) for name in ("is_leaf", "requires_grad", "grad_fn", "grad")),
}
"""What is asked of its shape and place."""
_KNOWN: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: _picked,
    Tensor.__iter__: _iterated,
    **dict.fromkeys((torch.unbind, Tensor.unbind), _each),
    **dict.fromkeys((torch.transpose, Tensor.transpose), _transposed),
    **dict.fromkeys((torch.t, Tensor.t, getter("T")), _turned),
    getter("mT"): lambda weight: weight.other_way(),
    **dict.fromkeys((Tensor.contiguous, Tensor.detach, getter("data")), _itself),
    Tensor.to: _to,
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _product),
    **dict.fromkeys((torch.mm, Tensor.mm, torch.bmm, Tensor.bmm), _product),
    Tensor.__rmatmul__: _product_from_right,
    # torch's public function hands on to a private one, which is what arrives here (torch 2.13).
    **dict.fromkeys((F.grouped_mm, getattr(torch, "_grouped_mm", None)), _grouped),
}
