"""Packed weights by the compiled library: the bits of plain torch's `fill`, and products in float64 with them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from kernel_sets import format_of, sets_with, used
from lorakit.kernels import native
from lorakit.kernels.packed import compiled
from lorakit.kernels.packed.bitsandbytes_blocks import FourBitBlocks, Nested
from lorakit.kernels.packed.dynamic_map import DYNAMIC
from lorakit.kernels.packed.four_bits import NF4_LEVELS, FourBits
from lorakit.kernels.packed.fp8 import Fp8
from lorakit.kernels.packed.ggml import BLOCK_TYPES, GgmlBlocks
from lorakit.kernels.packed.int8 import Int8
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.kernels.packed.packing import whole
from lorakit.kernels.packed.scaled import ScaledBytes
from lorakit.kernels.packed.weight import PackedWeight

CPU = torch.device("cpu")


@pytest.fixture(params=sets_with("packed_fill"))
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The number format of each set, which is forced."""
    return format_of(used(monkeypatch, request.param))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """So many threads within the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def of_ggml(kind: str) -> Callable[[Tensor], GgmlBlocks]:
    """Random blocks of a GGUF type of the shape of a weight, with scales of either sign, one of them tiny."""

    def made(weight: Tensor) -> GgmlBlocks:
        block, (out, width) = BLOCK_TYPES[kind], weight.shape
        blocks = torch.randint(256, (out, width // block.size, block.nbytes), dtype=torch.uint8)
        halves = 2 if kind in ("Q4_1", "Q4_K", "Q5_K") else 1
        scales = (torch.randn(out, width // block.size, halves) * 0.01).half()
        scales[0, 0] = 6e-8
        at = 208 if kind == "Q6_K" else 0
        blocks[:, :, at : at + 2 * halves] = scales.view(torch.uint8)
        return GgmlBlocks(block, blocks.view(out, -1))

    return made


def of_bitsandbytes(nested: bool) -> Callable[[Tensor], FourBitBlocks]:
    """Random codes as a folder of bitsandbytes has them, in blocks of 128."""

    def made(weight: Tensor) -> FourBitBlocks:
        count = -(-weight.numel() // 128)
        codes = torch.randint(256, (weight.numel() // 2, 1), dtype=torch.uint8)
        shape, table = (weight.shape[0], weight.shape[1]), torch.randn(16)
        if not nested:
            return FourBitBlocks(codes, torch.rand(count), table, 128, "fp4", shape)
        own = torch.randint(256, (count,), dtype=torch.uint8)
        outer = Nested(torch.tensor(DYNAMIC), torch.rand(-(-count // 4)), 4, 0.0371)
        return FourBitBlocks(codes, own, table, 128, "fp4", shape, outer)

    return made


def of_compressed(weight: Tensor) -> ScaledBytes:
    """float8 with a scale for each row, as compressed-tensors has it; NaN and both zeros among it."""
    values = (weight * 100).to(torch.float8_e4m3fn)
    values.view(torch.uint8)[0, :5] = torch.tensor([0x7F, 0xFF, 0x00, 0x80, 0x01])
    return ScaledBytes(values, torch.rand(len(weight), 1), None, (1, weight.shape[1]))


FLAT: dict[str, Callable[[Tensor], Any]] = {
    "nf4": FourBits.nf4,
    "nf4 single": lambda w: FourBits.nf4(w, double=False),
    "int4": FourBits.int4,
}
BY_ROWS: dict[str, Callable[[Tensor], Any]] = {
    "int8": Int8.of,
    "fp8": Fp8.of,
    "compressed fp8": of_compressed,
}
GROUPED: dict[str, Callable[[Tensor], Any]] = {
    "bitsandbytes": of_bitsandbytes(nested=False),
    "bitsandbytes nested": of_bitsandbytes(nested=True),
    "q4_0": of_ggml("Q4_0"),
    "q4_1": of_ggml("Q4_1"),
    "q8_0": of_ggml("Q8_0"),
}
EIGHTS: dict[str, Callable[[Tensor], Any]] = {
    name: of_ggml(name.upper()) for name in ("q4_k", "q5_k", "q6_k")
}
ANY_SHAPE = [(5, 7), (130, 33), (3, 66)]
WHOLE_GROUPS = [(1, 32), (7, 96), (37, 160), (600, 256)]
CASES = [
    *((name, shape) for name in (*FLAT, *BY_ROWS, *GROUPED) for shape in WHOLE_GROUPS),
    *((name, shape) for name in (*FLAT, *BY_ROWS) for shape in ANY_SHAPE),
    *((name, shape) for name in EIGHTS for shape in [(3, 256), (70, 512)]),
]
MAKERS = FLAT | BY_ROWS | GROUPED | EIGHTS


def packed(name: str, shape: tuple[int, int]) -> Any:
    torch.manual_seed(0)
    weight = torch.randn(shape) * 0.02
    weight[0, :3] = 0
    return MAKERS[name](weight)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal, NaN where the other is, and the signs of zeros."""
    kind = {4: torch.int32, 2: torch.int16}[one.element_size()]
    none = one.isnan()
    equal = one.view(kind)[~none].equal(other.view(kind)[~none])
    return equal and bool(other.isnan().equal(none))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_rows_have_the_bits_of_plain_torch(
    name: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    packing = packed(name, shape)
    known = compiled.described(packing)
    assert known is not None
    wanted = whole(packing, torch.float32).to(dtype)
    for start, stop in ((0, shape[0]), (shape[0] // 3, shape[0]), (0, (shape[0] + 1) // 2)):
        rows = torch.full((stop - start, shape[1]), 9.0, dtype=dtype)
        assert compiled.fill(known, rows, start)
        assert same_bits(wanted[start:stop], rows)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_products_of_few_rows_in_float64(
    name: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    packing = packed(name, shape)
    weight = whole(packing, torch.float32).nan_to_num_().double()
    if name == "compressed fp8":
        packing.values.view(torch.uint8)[0, :2] = 0  # what was NaN
    known = compiled.described(packing)
    assert known is not None
    for tokens in range(1, 6):
        x = torch.randn(tokens, shape[1]).to(dtype)
        y = compiled.product([known, known], x)
        if tokens > compiled.MOST_ROWS or (shape[1] % 32 and name in FLAT):
            assert y is None
            continue
        assert y is not None
        wanted = torch.cat([x.double() @ weight.T] * 2, dim=1)
        # A sum of float32, which is rounded once when it is stored; what it is made of is not.
        stored = {torch.bfloat16: 2.0**-8, torch.float32: 0.0}[dtype] * wanted.abs()
        summed = 2e-6 * (x.double().abs() @ weight.abs().T).repeat(1, 2)
        assert ((y.double() - wanted).abs() <= stored + summed).all()


def test_a_row_of_x_has_one_sum_whatever_is_beside_it(dtype: torch.dtype) -> None:
    known = compiled.described(packed("nf4", (600, 256)))
    assert known is not None
    x = torch.randn(4, 256).to(dtype)
    together = compiled.product([known], x)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for row in range(4):
                alone = compiled.product([known], x[row : row + 1])
                assert alone is not None
                assert together is not None
                assert torch.equal(alone[0], together[row])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("tokens", [1, 4, 5, 40])
@pytest.mark.parametrize("name", ["nf4", "int8", "q4_1"])
def test_a_weight_multiplies_by_the_library(
    name: str, tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing = packed(name, (200, 96))
    weight, wide = PackedWeight(packing, dtype), whole(packing, torch.float64)
    monkeypatch.setattr(type(packing), "fill", None)  # plain torch has no part in it
    x, g = torch.randn(tokens, 96).to(dtype), torch.randn(tokens, 200).to(dtype)
    y, grad = torch.randn(tokens, 200).to(dtype), torch.randn(tokens, 96).to(dtype)
    added, added_grad = y.clone(), grad.clone()
    weight.add_product(added, x)
    weight.add_input_gradient(added_grad, g)
    close = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for got, want in [
        (weight.product(x), x.double() @ wide.T),
        (weight.product(x, y), y.double() + x.double() @ wide.T),
        (added, y.double() + x.double() @ wide.T),
        (weight.input_gradient(g), g.double() @ wide),
        (added_grad, grad.double() + g.double() @ wide),
    ]:
        assert (got.double() - want).abs().max() <= close * want.abs().max()


def test_where_the_library_may_not_plain_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = PackedWeight(packed("nf4", (64, 96)), torch.bfloat16)
    x = torch.randn(2, 96).bfloat16()
    wanted = x.double() @ whole(weight.packing, torch.float64).T
    for why in ("forced", "absent"):
        with monkeypatch.context() as patch:
            if why == "forced":
                patch.setenv(native.VARIABLE, native.PLAIN)
            else:
                patch.setattr(native, "library", lambda: "lorakit-kernels is not installed")
            rows = torch.empty(64, 96, dtype=torch.bfloat16)
            assert weight.description is not None
            assert not compiled.fill(weight.description, rows, 0)
            assert compiled.product([weight.description], x) is None
            assert (weight.product(x).double() - wanted).abs().max() < 2e-2 * wanted.abs().max()


@pytest.mark.parametrize("wide", [torch.float16, torch.float64])
def test_other_number_formats_are_plain_torchs(wide: torch.dtype) -> None:
    weight = PackedWeight(packed("nf4", (64, 96)), wide)
    x = torch.randn(2, 96).to(wide)
    wanted = x.double() @ whole(weight.packing, torch.float64).T
    assert (weight.product(x).double() - wanted).abs().max() < 2e-3 * wanted.abs().max()


def test_what_the_kernels_do_not_know_is_not_described() -> None:
    assert compiled.described(packed("nf4", (64, 96))) is not None
    whole_matrix = ScaledBytes(torch.ones(4, 32).to(torch.int8), torch.ones(1, 1), None, (4, 32))
    assert compiled.described(whole_matrix) is None
    zeros = ScaledBytes(
        torch.ones(4, 32).to(torch.int8), torch.ones(4, 1), torch.ones(4, 1), (1, 32)
    )
    assert compiled.described(zeros) is None
    other = BLOCK_TYPES["Q5_0"]
    assert compiled.described(GgmlBlocks(other, torch.zeros(4, 22, dtype=torch.uint8))) is None
    # The bytes of its last group are not all there.
    assert compiled.described(of_bitsandbytes(False)(torch.zeros(3, 22))) is None
    meta = {name: each.to("meta") for name, each in packed("nf4", (64, 96)).tensors.items()}
    assert compiled.described(packed("nf4", (64, 96)).over(meta)) is None
    half = Int8(torch.ones(4, 32, dtype=torch.int8), torch.ones(4, dtype=torch.float16))
    assert compiled.described(half) is None


def test_a_layer_computes_with_the_tensors_that_it_has_now(dtype: torch.dtype) -> None:
    layer = PackedLinear(packed("nf4", (64, 96)), dtype, torch.randn(64))
    x = torch.randn(1, 96).to(dtype)
    before, kept = layer(x), layer.frozen
    assert layer.frozen is kept
    other = PackedLinear(packed("nf4", (64, 96)), dtype, torch.zeros(64))
    other.get_buffer("codes").random_(256)
    layer.load_state_dict(other.state_dict())
    after = layer(x)
    assert not torch.equal(before, after)
    assert torch.equal(after, other(x))
    layer.codes = torch.zeros_like(layer.get_buffer("codes"))
    assert layer.frozen is not kept
    assert torch.equal(layer(x), PackedLinear(layer.packing, dtype, layer.bias)(x))


def test_no_address_is_saved_or_copied(dtype: torch.dtype, tmp_path: Any) -> None:
    layer = PackedLinear(packed("nf4", (64, 96)), dtype)
    x = torch.randn(1, 96).to(dtype)
    y = layer(x)
    torch.save(layer, tmp_path / "layer.pt")
    assert torch.equal(torch.load(tmp_path / "layer.pt", weights_only=False)(x), y)


def test_levels_are_those_of_the_paper() -> None:
    assert compiled.levels(NF4_LEVELS).tolist() == torch.tensor(NF4_LEVELS).tolist()
