"""A weight W + s·L·R that is multiplied without being formed: tensors of experts and their pairs.

    x (W + s·L·R) = x W + s·(x L) R          W: (…, m, n)   L: (…, m, r)   R: (…, r, n)

Model code that keeps the weights of all its experts in one parameter reads that parameter and multiplies
by it in many ways: expert by expert, batched, or grouped. `AdaptedWeight` is a tensor that stands in its
place. The products that are known here use the right-hand side above; picking experts, transposing and
splitting the first axis give another `AdaptedWeight`; anything else is done with W + s·L·R itself, so that
the answer is right whatever the model's code does. Tokens of a grouped product are sorted by expert. W may be
packed (packed/matrices.py): then all that is done with it goes by its own way, through `called`.

Longer than 300 lines: the tensor, and every product in which it stands for a weight.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from lorakit.kernels.packed.matrices import MatricesTensor, called, dense
from lorakit.kernels.read_through import OF_SHAPE, getter


class AdaptedWeight(Tensor):
    """W + s·L·R in the place of W, for whoever multiplies by it.

    Attributes:
        weight: W, (…, m, n), frozen.
        left: L, (…, m, r).
        right: R, (…, r, n).
        scale: s.
    """

    weight: Tensor
    left: Tensor
    right: Tensor
    scale: float

    @classmethod
    def of(cls, weight: Tensor, left: Tensor, right: Tensor, scale: float) -> "AdaptedWeight":
        """W + s·L·R of these parts; none of them is copied."""
        made = torch.Tensor._make_subclass(cls, weight.detach())
        made.weight, made.left, made.right, made.scale = weight, left, right, scale
        return made

    def formed(self) -> Tensor:
        """W + s·L·R, added in float32 (float64 stays) and rounded once to W's dtype."""
        kind = torch.promote_types(self.left.dtype, torch.float32)
        update = self.scale * (self.left.to(kind) @ self.right.to(kind))
        return (dense(self.weight).to(update.dtype) + update).to(self.weight.dtype)

    def low_rank(self, x: Tensor) -> Tensor:
        """s·(x L) R: (…, m) -> (…, n), in the dtype of x."""
        return self.scale * (x @ self.left.to(x.dtype)) @ self.right.to(x.dtype)

    def turned(self) -> "AdaptedWeight":
        """Its last two axes exchanged: Wᵀ + s·Rᵀ Lᵀ."""
        turned = called(Tensor.transpose, self.weight, -2, -1)
        return AdaptedWeight.of(turned, self.right.mT, self.left.mT, self.scale)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What a function of torch gives for it: by a way known here, else with W + s·L·R."""
        given = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            if func in OF_SHAPE:
                return func(*tree_map(_weight_of, tuple(args)), **given)
            known = _KNOWN.get(func)
            answer = known(*args, **given) if known is not None else NotImplemented
            if answer is not NotImplemented:
                return answer
            name = getattr(func, "__name__", "")
            if name.endswith("_") and not name.endswith("__") and isinstance(args[0], cls):
                raise TypeError(f"{name} would change a frozen weight that has a pair beside it")
            return func(*tree_map(_formed, tuple(args)), **tree_map(_formed, given))


class _GroupedLowRank(torch.autograd.Function):
    """y_g = s·(x_g L_g) R_g for the rows of each group g, with its backward written out.

    torch's grouped product takes no float64 and wants widths that are multiples of 16 bytes, which a
    rank need not be.
    """

    @staticmethod
    def forward(
        ctx: Any, x_TM: Tensor, left: Tensor, right: Tensor, scale: float, ends: Sequence[int]
    ) -> Tensor:
        y_TN = x_TM.new_zeros(len(x_TM), right.shape[-1])
        h_TR = x_TM.new_empty(len(x_TM), right.shape[-2])
        for group, (start, stop) in enumerate(zip((0, *ends[:-1]), ends, strict=True)):
            if stop > start:
                h = torch.mm(x_TM[start:stop], left[group], out=h_TR[start:stop])
                torch.mm(h.mul_(scale), right[group], out=y_TN[start:stop])
        ctx.save_for_backward(x_TM, left, right, h_TR)
        ctx.scale, ctx.ends = scale, ends
        return y_TN

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_TM, left, right, h_TR = ctx.saved_tensors
        grad_x, grad_h = torch.zeros_like(x_TM), torch.empty_like(h_TR)
        grad_left, grad_right = torch.zeros_like(left), torch.zeros_like(right)
        grad = grad.contiguous()
        for group, (start, stop) in enumerate(zip((0, *ctx.ends[:-1]), ctx.ends, strict=True)):
            if stop > start:
                g, h, x = grad[start:stop], h_TR[start:stop], x_TM[start:stop]
                grad_right[group] = h.t() @ g
                low = torch.mm(g, right[group].t(), out=grad_h[start:stop]).mul_(ctx.scale)
                grad_left[group] = x.t() @ low
                torch.mm(low, left[group].t(), out=grad_x[start:stop])
        return grad_x, grad_left, grad_right, None, None


class _GroupedProduct(torch.autograd.Function):
    """y_g = x_g W_g + s·(x_g L_g) R_g for the rows of each group g, W frozen, with its backward.

    One group after the other, each product beside the others of its rows while they are in the cache; the
    low-rank ones add to what is there. L comes as Lᵀ, (G, r, m): products with r columns run at twice the
    rate when both sides are read along their rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TM: Tensor,
        weight: Tensor,
        left_GRM: Tensor,
        right: Tensor,
        scale: float,
        sizes: Sequence[int],
    ) -> Tensor:
        y_TN = x_TM.new_empty(len(x_TM), weight.shape[-1])
        h_TR = x_TM.new_empty(len(x_TM), right.shape[-2])
        parts = zip(*_by_group((x_TM, y_TN, h_TR), sizes), weight, left_GRM, right, strict=True)
        for x, y, h, W, L, R in parts:
            if len(x):
                torch.mm(x, W, out=y)
                torch.mm(x, L.t(), out=h)
                y.addmm_(h, R, alpha=scale)
        ctx.save_for_backward(x_TM, weight, left_GRM, right, h_TR)
        ctx.scale, ctx.sizes = scale, sizes
        y_TN[sum(sizes) :] = 0.0
        return y_TN

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_TM, weight, left, right, h_TR = ctx.saved_tensors
        grad_x, grad = torch.empty_like(x_TM), grad.contiguous()
        grad_left, grad_right = torch.zeros_like(left), torch.zeros_like(right)
        rows = _by_group((x_TM, grad_x, h_TR, grad), ctx.sizes)
        pairs = zip(weight, left, right, grad_left, grad_right, strict=True)
        for (x, gx, h, g), (W, L, R, gL, gR) in zip(zip(*rows, strict=True), pairs, strict=True):
            if len(x):
                low = (g @ R.t()).mul_(ctx.scale)
                torch.mm(g, W.t(), out=gx).addmm_(low, L)
                torch.mm(h.t(), g, out=gR)
                torch.mm(low.t(), x, out=gL)
        grad_x[sum(ctx.sizes) :] = 0.0
        return grad_x, None, grad_left, grad_right.mul_(ctx.scale), None, None


def _by_group(tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """The rows of each group, of each tensor; rows past the last group are left out."""
    return [tensor[: sum(sizes)].split(list(sizes)) for tensor in tensors]


def grouped_low_rank(
    x_TM: Tensor, left: Tensor, right: Tensor, scale: float, ends: Tensor | Sequence[int]
) -> Tensor:
    """s·(x L_g) R_g, g the group of each row.

    Args:
        x_TM: (T, m), sorted by group.
        left: (G, m, r).
        right: (G, r, n).
        scale: s.
        ends: one past the last row of each group, (G,); rows past the last give 0.

    Returns:
        (T, n).
    """
    stops = ends.tolist() if isinstance(ends, Tensor) else list(ends)
    kind = x_TM.dtype
    parts = (left.to(kind).contiguous(), right.to(kind).contiguous())
    return cast(Tensor, _GroupedLowRank.apply(x_TM, *parts, scale, stops))


def _weight_of(value: Any) -> Any:
    return value.weight if isinstance(value, AdaptedWeight) else value


def _formed(value: Any) -> Any:
    return value.formed() if isinstance(value, AdaptedWeight) else value


def _picked(weight: Any, index: Any) -> Any:
    """Some of its experts: an index into the first axis alone."""
    if not isinstance(weight, AdaptedWeight) or weight.weight.dim() < 3:
        return NotImplemented
    if not isinstance(index, int | slice | Tensor) or isinstance(index, bool):
        return NotImplemented
    W = called(Tensor.__getitem__, weight.weight, index)
    left, right = weight.left[index], weight.right[index]
    return AdaptedWeight.of(W, left, right, weight.scale)


def _transposed(weight: Any, first: int, second: int) -> Any:
    axes = weight.weight.dim()
    if {first % axes, second % axes} != {axes - 2, axes - 1}:
        return NotImplemented
    return weight.turned()


def _turned(weight: Any) -> Any:
    return weight.turned() if weight.weight.dim() == 2 else NotImplemented


def _split(weight: Any, *sizes: Any) -> Any:
    """The first axis of a matrix split into two: rows that belong to one expert each."""
    shape = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    W = weight.weight
    if W.dim() != 2 or len(shape) != 3 or shape[-1] != W.shape[1]:
        return NotImplemented
    split = called(Tensor.view, W, shape)
    left = weight.left.reshape(*split.shape[:2], -1)
    return AdaptedWeight.of(split, left, weight.right.expand(len(split), -1, -1), weight.scale)


def _contiguous(weight: Any) -> Any:
    return AdaptedWeight.of(
        called(Tensor.contiguous, weight.weight), weight.left, weight.right, weight.scale
    )


def _to(weight: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(weight, AdaptedWeight):
        return NotImplemented
    moved = called(Tensor.to, weight.weight, *args, **kwargs)
    left, right = weight.left.to(moved.device), weight.right.to(moved.device)
    return AdaptedWeight.of(moved, left, right, weight.scale)


def _linear(x: Any, weight: Any, bias: Tensor | None = None) -> Any:
    if isinstance(x, AdaptedWeight) or not isinstance(weight, AdaptedWeight):
        return NotImplemented
    return called(F.linear, x, weight.weight, bias) + weight.turned().low_rank(x)


def _product(first: Any, second: Any) -> Any:
    if isinstance(second, AdaptedWeight):
        if isinstance(first, AdaptedWeight) or first.dim() < 2:
            return NotImplemented
        return called(torch.matmul, first, second.weight) + second.low_rank(first)
    if second.dim() < 2:
        return NotImplemented
    left, right = first.left.to(second.dtype), first.right.to(second.dtype)
    return called(torch.matmul, first.weight, second) + first.scale * left @ (right @ second)


def _product_from_right(second: Any, first: Any) -> Any:
    return _product(first, second)


def _grouped(x: Any, weight: Any, offs: Any = None, **more: Any) -> Any:
    known = isinstance(weight, AdaptedWeight) and not isinstance(x, AdaptedWeight)
    if not known or offs is None or x.dim() != 2 or weight.weight.dim() != 3:
        return NotImplemented
    if any(value is not None for value in more.values()):
        return NotImplemented
    packed = isinstance(weight.weight, MatricesTensor)
    if x.device.type == "cpu" and x.dtype == weight.weight.dtype and not packed:
        left_GRM = weight.left.to(x.dtype).mT.contiguous()  # no copy: A's own layout
        right = weight.right.to(x.dtype).contiguous()
        stops = offs.tolist()
        sizes = [stop - start for start, stop in zip((0, *stops[:-1]), stops, strict=True)]
        return _GroupedProduct.apply(x, weight.weight, left_GRM, right, weight.scale, sizes)
    y_TN = called(F.grouped_mm, x, weight.weight, offs=offs)
    low = grouped_low_rank(x, weight.left, weight.right, weight.scale, offs)
    return y_TN + low.to(y_TN.dtype)


_KNOWN: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: _picked,
    Tensor.transpose: _transposed,
    torch.transpose: _transposed,
    Tensor.t: _turned,
    torch.t: _turned,
    getter("T"): _turned,
    getter("mT"): lambda weight: weight.turned(),
    Tensor.view: _split,
    Tensor.reshape: _split,
    Tensor.contiguous: _contiguous,
    Tensor.to: _to,
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _product),
    **dict.fromkeys((torch.mm, Tensor.mm, torch.bmm, Tensor.bmm), _product),
    Tensor.__rmatmul__: _product_from_right,
    # torch's public function hands on to a private one, which is what arrives here (torch 2.13).
    **dict.fromkeys((F.grouped_mm, getattr(torch, "_grouped_mm", None)), _grouped),
}
