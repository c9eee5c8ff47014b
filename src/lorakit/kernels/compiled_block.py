"""A whole transformer block as one compiled call forward and one backward (native/src/block.cpp).

    n  = norm(x)     q, k, v = L(n)     o = attention(q, k, v)     x' = x + L(o)
    n' = norm(x')    g, u = L(n')                                  y  = x' + L(silu(g) * u)

The same equations as block.py, attention.py and rotary.py, which are its oracle and what computes where
`compiled_block` gives None: no library, another number format, weights that are trained, pairs for some
of the rows, or attention that is more than causal. Kept for the backward are x, q, k, v, o, x', g, u, the
h of each pair and three scalars a row; frozen weights are read where they lie, packed ones too
(packed/compiled.py): their numbers are made piece by piece, in each thread's own memory, and forgotten.

Legend: T tokens, D width, E width of a head, M width of the MLP.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.kernels import keeping, native
from lorakit.kernels.groups import Linear
from lorakit.kernels.layout import Layout
from lorakit.kernels.packed.compiled import Described, description_of
from lorakit.kernels.workspace import LINE, workspace

_ADDRESS, _COUNT, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class _LayerStruct(ctypes.Structure):
    """As native/src/block.cpp has it."""

    _fields_ = (
        *((name, _ADDRESS) for name in ("w", "bias", "A", "B", "dA", "dB")),
        *((name, _COUNT) for name in ("in_", "out", "rank")),
        ("factor", _REAL),
        ("packed", _ADDRESS),
    )


_COUNTS = (
    *("tokens", "width", "heads", "key_heads", "head_width"),
    *("sequences", "window", "angles", "rooms", "room_size"),
)
_KEPT = ("q", "k", "v", "o", "middle", "gate", "up", "scale1", "scale2", "log", "h")
_SCALARS = ("scale1", "scale2", "log")  # of rows; kept in float32 whatever x is in


class _BlockStruct(ctypes.Structure):
    """As native/src/block.cpp has it."""

    _fields_ = (
        *((name, _COUNT) for name in _COUNTS),
        *((name, _REAL) for name in ("eps1", "eps2", "query_eps", "key_eps", "scale")),
        *((name, _ADDRESS) for name in ("start", "cos", "sin", "norm1", "norm2")),
        *((name, _ADDRESS) for name in ("query_norm", "key_norm", "x", "dy", "y", "dx")),
        *((name, _ADDRESS) for name in (*_KEPT, "work", "room")),
        ("layer", _LayerStruct * 7),
    )


@dataclass(frozen=True, eq=False)
class RmsNorm:
    """w · x / sqrt(mean(x²) + ε)."""

    weight: Tensor
    eps: float


@dataclass(frozen=True, eq=False)
class BlockForm:
    """What a block is beside its inputs.

    Attributes:
        linears: q, k, v, o, gate, up, down.
        norms: of the attention's input and of the MLP's.
        head_norms: of each query head and each key head, before rotary; None for none.
        scale: of the scores.
        window: a token sees itself and the window - 1 tokens before it; None: all before it.
    """

    linears: Sequence[Linear]
    norms: tuple[RmsNorm, RmsNorm]
    head_norms: tuple[RmsNorm, RmsNorm] | None
    scale: float
    window: int | None


def compiled_block(
    x_TD: Tensor, cos_TE: Tensor, sin_TE: Tensor, where: Layout, form: BlockForm
) -> Tensor | None:
    """The block's output, (T, D), or None where plain torch has to compute it.

    Args:
        x_TD: the residual stream.
        cos_TE: of each token's rotary angles, both halves alike.
        sin_TE: likewise.
        where: the sequences lie.
        form: of the block.
    """
    if not has_kernels(x_TD.dtype, x_TD.device) or not _suits(x_TD, cos_TE, sin_TE, where, form):
        return None
    static = _Form(
        tuple((each.pairs[0].scale if each.pairs else 0.0) for each in form.linears),
        tuple(norm.eps for norm in (*form.norms, *(form.head_norms or ()))),
        form.scale,
        _window(form, where),
        cos_TE.shape[1],
        # Tokens of no sequence, at the end, are one more: nobody reads what it holds.
        where.lengths + ((rest,) if (rest := len(x_TD) - sum(where.lengths)) else ()),
        tuple(description_of(each.weight) for each in form.linears),
    )
    tensors: list[Tensor | None] = [cos_TE, sin_TE, *(norm.weight for norm in form.norms)]
    tensors += [norm.weight for norm in form.head_norms] if form.head_norms else [None, None]
    for each in form.linears:
        pair = each.pairs[0] if each.pairs else None
        tensors += [each.weight if isinstance(each.weight, Tensor) else None, each.bias]
        tensors += [pair.A, pair.B] if pair else [None, None]
    return cast(Tensor, _CompiledBlock.apply(x_TD, static, *tensors))


def takes(linears: Sequence[Linear]) -> bool:
    """Whether the kernels can read the weights of these linear layers: dense ones, and packings that they know."""
    weights = (each.weight for each in linears)
    return all(isinstance(w, Tensor) or description_of(w) is not None for w in weights)


def has_kernels(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the chosen set computes whole blocks of this number format there."""
    return native.function("block_forward", "i", dtype, device) is not None


@dataclass(frozen=True)
class _Form:
    """What is no tensor."""

    factors: tuple[float, ...]
    eps: tuple[float, ...]
    scale: float
    window: int
    head_width: int
    lengths: tuple[int, ...]
    packed: tuple[Described | None, ...]


def _window(form: BlockForm, where: Layout) -> int:
    """0 where no sequence is longer than it."""
    return 0 if form.window is None or form.window >= max(where.lengths) else form.window


def _suits(x_TD: Tensor, cos_TE: Tensor, sin_TE: Tensor, where: Layout, form: BlockForm) -> bool:
    """Whether the library can compute it."""
    width = cos_TE.shape[1]
    norms = (*form.norms, *(form.head_norms or ()))
    frozen = [norm.weight for norm in norms]
    trained: list[Tensor] = []
    if not takes(form.linears) or any(len(each.pairs) > 1 for each in form.linears):
        return False
    for each in form.linears:
        frozen += [each.weight] if isinstance(each.weight, Tensor) else []
        frozen += [] if each.bias is None else [each.bias]
        for pair in each.pairs:
            if pair.rows is not None:
                return False
            trained += [pair.A, pair.B]
    if any(tensor.requires_grad for tensor in (*frozen, cos_TE, sin_TE)):
        return False
    if not all(_readable(tensor, x_TD.dtype) for tensor in (*frozen, cos_TE, sin_TE)):
        return False
    if not all(_readable(tensor, torch.float32) for tensor in trained):
        return False
    q, k, v, o, gate, up, down = (each.frozen.shape for each in form.linears)
    return (
        sum(where.lengths) <= len(x_TD) == len(cos_TE) == len(sin_TE)
        and width % 2 == 0
        and sin_TE.shape[1] == width
        and all(out % width == 0 for out, _ in (q, k))
        and q[0] % k[0] == 0
        and k[0] == v[0]
        and (o[1], up, down) == (q[0], gate, (x_TD.shape[1], gate[0]))
        and o[0] == x_TD.shape[1]
        and all(norm.weight.numel() == width for norm in form.head_norms or ())
    )


def _readable(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.dtype == dtype and tensor.device.type == "cpu" and tensor.is_contiguous()


class _CompiledBlock(torch.autograd.Function):
    """`compiled_block`; tensors: cos, sin, four norms, and weight, bias, A, B of each linear layer."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, form: _Form, *tensors: Tensor | None) -> Tensor:
        x_TD = x_TD.contiguous()
        block, kept, places = _described(x_TD, form, tensors)
        y_TD = torch.empty_like(x_TD)
        block.y = y_TD.data_ptr()
        _run("block_forward", block, x_TD)
        ctx.save_for_backward(x_TD, kept, *tensors)
        ctx.form, ctx.places = form, places
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, kept, *tensors = ctx.saved_tensors
        dy_TD = dy_TD.contiguous()
        block, _, _ = _described(x_TD, ctx.form, tensors, kept)
        block.dy = dy_TD.data_ptr()
        dx_TD = torch.empty_like(x_TD) if ctx.needs_input_grad[0] else None
        block.dx = None if dx_TD is None else dx_TD.data_ptr()
        gradients: list[Tensor | None] = [None] * len(tensors)
        for i in range(7):
            for name, place in (("dA", _FIRST + 4 * i + 2), ("dB", _FIRST + 4 * i + 3)):
                if ctx.needs_input_grad[2 + place]:
                    gradient = torch.empty_like(cast(Tensor, tensors[place]))
                    setattr(block.layer[i], name, gradient.data_ptr())
                    gradients[place] = gradient
        _run("block_backward", block, x_TD)
        return dx_TD, None, *gradients


_FIRST = 6  # of the tensors, the first linear layer's weight


def _described(
    x_TD: Tensor, form: _Form, tensors: Sequence[Tensor | None], kept: Tensor | None = None
) -> tuple[_BlockStruct, Tensor, dict[str, int]]:
    """A block as the library takes it, what it keeps, and where in that each tensor begins."""
    tokens, width = x_TD.shape
    address = [None if t is None else t.data_ptr() for t in tensors]
    block = _BlockStruct(
        tokens=tokens,
        width=width,
        head_width=form.head_width,
        sequences=len(form.lengths),
        window=form.window,
        angles=form.head_width,
        scale=form.scale,
        start=_starts(form.lengths).data_ptr(),
        x=x_TD.data_ptr(),
    )
    block.cos, block.sin, block.norm1, block.norm2, block.query_norm, block.key_norm = address[
        :_FIRST
    ]
    block.eps1, block.eps2, block.query_eps, block.key_eps = (*form.eps, 0.0, 0.0)[:4]
    ranks = 0
    for i, factor in enumerate(form.factors):
        layer, at = block.layer[i], _FIRST + 4 * i
        weight, A = tensors[at] if form.packed[i] is None else form.packed[i], tensors[at + 2]
        assert weight is not None
        layer.w, layer.bias, layer.A, layer.B = address[at : at + 4]
        layer.packed = weight.address if isinstance(weight, Described) else None
        layer.out, layer.in_ = weight.shape
        layer.rank = 0 if A is None else A.shape[0]
        layer.factor = factor
        ranks += layer.rank
    q, k, v, o, gate, up, _ = (layer.out for layer in block.layer)
    block.heads, block.key_heads = q // form.head_width, k // form.head_width
    wanted = (q, k, v, q, o, gate, up, 1, 1, block.heads, ranks)
    places, end = {}, 0
    for name, columns in zip(_KEPT, wanted, strict=True):
        places[name] = end
        size = 4 if name in _SCALARS else x_TD.element_size()
        line = LINE * 4 // x_TD.element_size()
        end += -(-tokens * columns * size // (LINE * 4)) * line
    if kept is None:
        kept = keeping.take(end, x_TD)
    for name, place in places.items():
        setattr(block, name, kept.data_ptr() + place * kept.element_size())
    return block, kept, places


@lru_cache(maxsize=16)
def _starts(lengths: tuple[int, ...]) -> Tensor:
    """Of each sequence its first token, and where the last one ends."""
    return torch.tensor((0, *lengths)).cumsum(0)


def _run(name: str, block: _BlockStruct, x_TD: Tensor) -> None:
    """Call the library on a block, with memory to work in."""
    work, room = ctypes.c_int64(), ctypes.c_int64()
    address = ctypes.addressof(block)
    _kernel("block_sizes", "iii", x_TD)(address, ctypes.addressof(work), ctypes.addressof(room))
    block.rooms, block.room_size = torch.get_num_threads(), room.value
    block.work = workspace.of(work.value + block.rooms * room.value)
    block.room = block.work + 4 * work.value
    _kernel(name, "i", x_TD)(address)


def _kernel(name: str, arguments: str, x_TD: Tensor) -> Callable[..., None]:
    kernel = native.function(name, arguments, x_TD.dtype, x_TD.device)
    assert kernel is not None
    return kernel
