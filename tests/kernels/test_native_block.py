"""A compiled block against the equations in float64, under autograd."""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernel_sets import format_of, sets_with, used
from lorakit.kernels.attention import attend
from lorakit.kernels.block import gated_mlp, normed_group, residual_linear
from lorakit.kernels.compiled_block import BlockForm, RmsNorm, compiled_block
from lorakit.kernels.groups import Linear, LowRank
from lorakit.kernels.layout import Layout, layout
from lorakit.kernels.packed.four_bits import FourBits
from lorakit.kernels.packed.fp8 import Fp8
from lorakit.kernels.packed.int8 import Int8
from lorakit.kernels.packed.packing import whole
from lorakit.kernels.packed.weight import PackedWeight
from lorakit.kernels.rotary import rotate

CPU = torch.device("cpu")

Compute = Callable[[Tensor, Tensor, Tensor, Layout, BlockForm], Tensor | None]


@pytest.fixture(params=sets_with("block_forward"))
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The number format of each set, which is forced."""
    return format_of(used(monkeypatch, request.param))


@dataclass(frozen=True)
class Case:
    """Sizes of a block: multiples of no tile unless they are to be."""

    width: int
    inner: int
    heads: int
    key_heads: int
    head: int
    lengths: tuple[int, ...]
    ranks: tuple[int, ...] = (8, 8, 8, 8, 8, 8, 8)
    bias: bool = False
    norms: bool = False
    window: int | None = None


CASES = {
    "llama": Case(64, 96, 4, 2, 16, (13, 1, 50)),
    "of no tile": Case(37, 59, 3, 1, 10, (7, 12, 5), ranks=(3, 1, 5, 7, 2, 9, 4)),
    "ranks beyond a tile": Case(40, 50, 2, 2, 12, (20, 3), ranks=(17, 16, 33, 24, 6, 12, 100)),
    "pairs missing": Case(48, 64, 4, 1, 24, (31, 30), ranks=(8, 0, 8, 0, 0, 4, 0)),
    "no pair": Case(48, 64, 4, 4, 16, (9,), ranks=(0,) * 7),
    "biases": Case(64, 80, 4, 2, 16, (11, 48, 49), bias=True),
    "norms of heads": Case(64, 80, 4, 2, 32, (11, 97), norms=True),
    "a window": Case(32, 48, 2, 1, 16, (150, 20, 6), window=19),
    "a window, apart": Case(32, 48, 4, 2, 16, (300, 20), window=64),
    "long": Case(32, 48, 4, 2, 16, (257, 3)),
    "long, in halves": Case(16, 24, 2, 1, 8, (1030, 4), ranks=(2, 0, 1, 0, 0, 0, 3)),
    "wide heads": Case(64, 48, 2, 1, 128, (100, 30)),
    "heads of 96": Case(64, 48, 2, 1, 96, (60,)),
    "deep products": Case(700, 330, 2, 1, 64, (25,)),
}


@dataclass
class Tensors:
    """What a block is made of, in float64."""

    x: Tensor
    cos: Tensor
    sin: Tensor
    norms: list[Tensor]
    head_norms: list[Tensor]
    weights: list[Any]
    biases: list[Tensor | None]
    pairs: list[tuple[Tensor, Tensor] | None]
    dy: Tensor


SCALES = (0.5, 2.0, 1.0, 0.25, 1.5, 3.0, 0.7)


def made(case: Case, dtype: torch.dtype, seed: int = 1) -> Tensors:
    """Random tensors whose values are of that format, but for pairs, which are float32; B is not zero."""
    generator = torch.Generator().manual_seed(seed)

    def rounded(x: Tensor) -> Tensor:
        return x.to(dtype).double()

    def wide(*shape: int, size: float) -> Tensor:
        return (
            (torch.randn(*shape, generator=generator, dtype=torch.float64) * size).float().double()
        )

    def draw(*shape: int, size: float = 1.0) -> Tensor:
        return rounded(torch.randn(*shape, generator=generator, dtype=torch.float64) * size)

    q, k = case.heads * case.head, case.key_heads * case.head
    shapes = [
        *((out, case.width) for out in (q, k, k)),
        (case.width, q),
        *((case.inner, case.width),) * 2,
        (case.width, case.inner),
    ]
    tokens = sum(case.lengths)
    angle = wide(tokens, case.head // 2, size=3.0).repeat(1, 2)
    return Tensors(
        x=draw(tokens, case.width),
        cos=rounded(1.3 * angle.cos()),
        sin=rounded(1.3 * angle.sin()),
        norms=[rounded(1 + draw(case.width, size=0.3)) for _ in range(2)],
        head_norms=[rounded(1 + draw(case.head, size=0.3)) for _ in range(2 * case.norms)],
        weights=[draw(out, into, size=1.5 / math.sqrt(into)) for out, into in shapes],
        biases=[draw(out) if case.bias else None for out, _ in shapes],
        pairs=[
            (wide(rank, into, size=1 / math.sqrt(into)), wide(out, rank, size=0.3))
            if rank
            else None
            for (out, into), rank in zip(shapes, case.ranks, strict=True)
        ],
        dy=draw(tokens, case.width),
    )


def oracle(case: Case, t: Tensors) -> Tensor:
    """The equations, one sequence at a time, over the merged weights."""
    merged = [
        w if pair is None else w + s * pair[1] @ pair[0]
        for w, pair, s in zip(t.weights, t.pairs, SCALES, strict=True)
    ]

    def linear(i: int, x: Tensor) -> Tensor:
        return F.linear(x, merged[i], t.biases[i])

    def rms(x: Tensor, w: Tensor, eps: float) -> Tensor:
        return w * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()

    def turned(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * t.cos[:, None] + torch.cat((-b, a), -1) * t.sin[:, None]

    n = rms(t.x, t.norms[0], 1e-5)
    q, k, v = (linear(i, n).unflatten(1, (-1, case.head)) for i in range(3))
    if case.norms:
        q, k = rms(q, t.head_norms[0], 1e-3), rms(k, t.head_norms[1], 1e-4)
    q, k = turned(q), turned(k)
    parts, start = [], 0
    for length in case.lengths:
        own = slice(start, start + length)
        place = torch.arange(length)
        seen = place[None] <= place[:, None]
        if case.window is not None:
            seen &= place[None] > place[:, None] - case.window
        times = case.heads // case.key_heads
        s = torch.einsum("ihe,jhe->hij", q[own], k[own].repeat_interleave(times, 1)) * 0.21
        p = s.masked_fill(~seen, -math.inf).softmax(-1)
        parts.append(torch.einsum("hij,jhe->ihe", p, v[own].repeat_interleave(times, 1)))
        start += length
    x = t.x + linear(3, torch.cat(parts).flatten(1))
    n = rms(x, t.norms[1], 1e-6)
    return x + linear(6, F.silu(linear(4, n)) * linear(5, n))


def by_plain_torch(
    x: Tensor, cos: Tensor, sin: Tensor, where: Layout, form: BlockForm
) -> Tensor | None:
    """What computes where the library does not."""

    def rms(x: Tensor, norm: RmsNorm) -> Tensor:
        wide = x.float()
        n = wide * (wide.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
        return norm.weight * n.to(x.dtype)

    q, k, v, o, gate, up, down = form.linears
    before, between = form.norms
    parts = normed_group(x, before.weight, before.eps, [q, k, v])
    qs, ks, vs = (each.unflatten(1, (-1, cos.shape[1])) for each in parts)
    if form.head_norms:
        qs, ks = rms(qs, form.head_norms[0]), rms(ks, form.head_norms[1])
    qs, ks = rotate(qs, cos, sin), rotate(ks, cos, sin)
    attended = attend(qs, ks, vs, where, scale=form.scale, window=form.window)
    x = residual_linear(x, attended.flatten(1), o)
    return gated_mlp(x, between.weight, between.eps, gate, up, down)


def compiled(
    case: Case, t: Tensors, dtype: torch.dtype, compute: Compute = compiled_block
) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients of x and of each A and B by the library, in that format."""

    def single(x: Tensor) -> Tensor:
        return x.to(dtype).contiguous()

    pairs = [
        None if pair is None else tuple(x.float().requires_grad_() for x in pair)
        for pair in t.pairs
    ]
    norms = [single(x) for x in t.norms]
    heads = [single(x) for x in t.head_norms]
    form = BlockForm(
        [
            Linear(
                w if isinstance(w, PackedWeight) else single(w),
                None if b is None else single(b),
                () if p is None else (LowRank(p[0], p[1], s),),
            )
            for w, b, p, s in zip(t.weights, t.biases, pairs, SCALES, strict=True)
        ],
        (RmsNorm(norms[0], 1e-5), RmsNorm(norms[1], 1e-6)),
        (RmsNorm(heads[0], 1e-3), RmsNorm(heads[1], 1e-4)) if heads else None,
        0.21,
        case.window,
    )
    x = single(t.x).requires_grad_()
    y = compute(x, single(t.cos), single(t.sin), layout(case.lengths, CPU), form)
    assert y is not None
    leaves = [x, *(each for pair in pairs if pair for each in pair)]
    return y.detach(), list(torch.autograd.grad((y * single(t.dy)).sum(), leaves))


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many threads within the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_equations_in_float64(name: str, threads: int, dtype: torch.dtype) -> None:
    case = CASES[name]
    if dtype == torch.float32:
        t = made(case, dtype)
        for one, other in zip(compared(case, t, dtype), exact(case, t), strict=True):
            assert (one - other).abs().max() < 2e-5 * other.abs().max()
        return
    # What is stored in 16 bits between the passes is rounded: by plain torch more often. The error of one draw is
    # chance, on either side, so that the mean over several is compared. Threads change no bit: see below.
    ratios = []
    for seed in range(1, DRAWS + 1 if threads == 1 else 2):
        t = made(case, dtype, seed)
        right, ours = exact(case, t), compared(case, t, dtype)
        plain = compared(case, t, dtype, by_plain_torch)
        found = list(zip(ours, plain, right, strict=True))
        assert seed > 1 or all((a - c).norm() < 0.1 * c.norm() for a, _, c in found)
        ratios.append([float((a - c).norm() / (b - c).norm()) for a, b, c in found])
    if threads == 1:
        means = [statistics.geometric_mean(each) for each in zip(*ratios, strict=True)]
        assert max(means) < 1


DRAWS = 12


def exact(case: Case, t: Tensors) -> list[Tensor]:
    """The output of the equations in float64, and the gradients of x, A and B."""
    leaves = [t.x, *(each for pair in t.pairs if pair for each in pair)]
    for leaf in leaves:
        leaf.requires_grad_()
    wanted = oracle(case, t)
    gradients = torch.autograd.grad((wanted * t.dy).sum(), leaves)
    for leaf in leaves:
        leaf.requires_grad_(False)
    return [wanted.detach(), *gradients]


def compared(case: Case, t: Tensors, dtype: torch.dtype, *by: Any) -> list[Tensor]:
    """The same as it is computed, in one list."""
    y, gradients = compiled(case, t, dtype, *by)
    return [y, *gradients]


@pytest.mark.parametrize("name", ["of no tile", "long", "long, in halves", "norms of heads"])
def test_bits_do_not_depend_on_the_number_of_threads(name: str, dtype: torch.dtype) -> None:
    case, before = CASES[name], torch.get_num_threads()
    t, results = made(case, dtype), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, gradients = compiled(case, t, dtype)
            results.append([y, *gradients])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


PACKINGS: dict[str, Callable[[Tensor], Any]] = {
    "nf4": FourBits.nf4,
    "int4": FourBits.int4,
    "int8": Int8.of,
    "fp8": Fp8.of,
    "mixed": lambda w: FourBits.nf4(w) if w.shape[0] % 5 else Int8.of(w),
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    "name", ["llama", "of no tile", "pairs missing", "biases", "deep products"]
)
def test_packed_weights_give_the_bits_of_the_same_weights_dense(
    name: str, packing: str, dtype: torch.dtype
) -> None:
    case = CASES[name]
    packed, dense = made(case, dtype), made(case, dtype)
    weights = [PACKINGS[packing](w.to(dtype)) for w in packed.weights]
    dense.weights = [whole(each, dtype) for each in weights]
    packed.weights = [PackedWeight(each, dtype) for each in weights]
    y, gradients = compiled(case, packed, dtype)
    wanted, of_dense = compiled(case, dense, dtype)
    assert torch.equal(y, wanted)
    assert all(map(torch.equal, gradients, of_dense))


def test_a_packing_that_the_kernels_do_not_know_is_left_to_plain_torch(dtype: torch.dtype) -> None:
    case = CASES["llama"]
    t = made(case, dtype)
    scales_of_16_bits = torch.ones(96, dtype=torch.float16)
    packing = Int8(torch.ones(96, 64, dtype=torch.int8), scales_of_16_bits)
    t.weights[5] = PackedWeight(packing, dtype)
    with pytest.raises(AssertionError):
        compiled(case, t, dtype)


def test_not_a_number_stays_one(dtype: torch.dtype) -> None:
    case = CASES["llama"]
    t = made(case, dtype)
    t.x[20] = torch.nan  # of the last sequence, from its seventh token on
    y, gradients = compiled(case, t, dtype)
    assert y[20:].isnan().all()
    assert not y[:14].isnan().any()
    assert gradients[1].isnan().all()
