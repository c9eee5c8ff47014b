"""Packings against the formulas of their papers, in plain torch, and against bitsandbytes."""

import pytest
import torch

from lorakit.kernels.packed.dynamic_map import DYNAMIC
from lorakit.kernels.packed.four_bits import NF4_LEVELS, FourBits
from lorakit.kernels.packed.fp8 import Fp8
from lorakit.kernels.packed.int8 import Int8
from lorakit.kernels.packed.packing import nbytes, rows, whole

MAKERS = {
    "nf4": FourBits.nf4,
    "nf4 single": lambda w: FourBits.nf4(w, double=False),
    "int4": FourBits.int4,
    "int8": Int8.of,
    "fp8": Fp8.of,
}
# Bits of an element beside the error, a share of the norm, that a normal weight may have.
BITS_AND_ERROR = {
    "nf4": (4.13, 0.1),
    "nf4 single": (4.5, 0.1),
    "int4": (5, 0.1),
    "int8": (8.13, 0.01),
    "fp8": (8.13, 0.03),
}


@pytest.fixture(params=[(64, 256), (5, 7), (3, 66), (130, 33)], ids=str)
def dense(request):
    return torch.randn(request.param, generator=torch.Generator().manual_seed(0)) / 16


@pytest.mark.parametrize("name", MAKERS)
def test_error_and_size(name):
    dense = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    packing = MAKERS[name](dense)
    bits, error = BITS_AND_ERROR[name]
    assert nbytes(packing) * 8 / dense.numel() <= bits
    apart = whole(packing, torch.float32) - dense
    assert 0.3 * error < apart.norm() / dense.norm() < error


@pytest.mark.parametrize("name", MAKERS)
def test_any_rows_in_any_format(name, dense):
    packing = MAKERS[name](dense)
    wide = whole(packing, torch.float32)
    assert wide.shape == dense.shape
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for start, stop in [(0, len(dense)), (1, 3), (2, 3)]:
            assert torch.equal(rows(packing, start, stop, dtype), wide[start:stop].to(dtype))


@pytest.mark.parametrize("name", MAKERS)
def test_many_pieces(name, monkeypatch):
    dense = torch.randn(64, 256)
    packing = MAKERS[name](dense)
    wide = whole(packing, torch.float32)
    monkeypatch.setattr("lorakit.kernels.packed.lookup.PIECE", 512)
    assert torch.equal(whole(packing, torch.float32), wide)
    assert torch.equal(whole(packing, torch.bfloat16), wide.bfloat16())


@pytest.mark.parametrize("name", MAKERS)
def test_zeros_and_one_large_element(name):
    dense = torch.zeros(4, 128)
    assert not whole(MAKERS[name](dense), torch.float32).any()
    dense[2, 70] = -3.0
    apart = whole(MAKERS[name](dense), torch.float32) - dense
    assert apart.abs().max() < 0.02 * 3


def test_nf4_by_its_formula():
    dense = torch.randn(8, 64)
    levels = torch.tensor(NF4_LEVELS)
    largest = dense.abs().amax(1, keepdim=True)
    nearest = (dense / largest - levels[:, None, None]).abs().argmin(0)
    want = levels[nearest] * largest
    got = whole(FourBits.nf4(dense, double=False), torch.float32)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


def test_int4_by_its_formula():
    dense = torch.randn(8, 32)
    low, high = dense.amin(1, keepdim=True), dense.amax(1, keepdim=True)
    scale, low = ((high - low) / 15).bfloat16().float(), low.bfloat16().float()
    want = scale * ((dense - low) / scale).round().clamp(0, 15) + low
    torch.testing.assert_close(whole(FourBits.int4(dense), torch.float32), want)


def test_fp8_by_its_format():
    dense = torch.randn(8, 32)
    scale = dense.abs().amax(1, keepdim=True) / 448
    want = (dense / scale).to(torch.float8_e4m3fn).float() * scale
    assert torch.equal(whole(Fp8.of(dense), torch.float32), want)


class TestBitsandbytes:
    """The real library, where it is installed: the test extra has it on Linux x86."""

    @pytest.fixture
    def functional(self):
        reason = "bitsandbytes is not installed: pip install 'lorakit[dev]' has it on Linux x86"
        return pytest.importorskip("bitsandbytes.functional", reason=reason)

    def test_the_map_of_scales(self, functional):
        torch.testing.assert_close(
            torch.tensor(DYNAMIC), functional.create_dynamic_map(), rtol=1e-6, atol=0
        )

    @pytest.mark.parametrize("double", [False, True])
    def test_nf4(self, functional, double):
        dense = torch.randn(96, 256, generator=torch.Generator().manual_seed(1))
        codes, state = functional.quantize_4bit(
            dense, blocksize=64, compress_statistics=double, quant_type="nf4"
        )
        own = FourBits.nf4(dense, double=double)
        # Elements halfway between two levels may fall to either.
        assert (own.codes == codes.flatten()).float().mean() > 0.9999
        theirs = FourBits(
            *("nf4", (96, 256), codes.flatten()),
            state.absmax,
            torch.cat([state.state2.absmax, state.offset[None]]) if double else None,
        )
        want = functional.dequantize_4bit(codes, state)
        torch.testing.assert_close(whole(theirs, torch.float32), want, rtol=1e-6, atol=1e-7)
        apart = whole(own, torch.float32) - want
        assert apart.norm() < 2e-3 * want.norm()

    def test_int8(self, functional):
        dense = torch.randn(32, 64).half()
        codes, scales, _ = functional.int8_vectorwise_quant(dense)
        own = Int8.of(dense)
        assert (own.quants == codes).float().mean() > 0.999
        torch.testing.assert_close(own.scales * 127, scales.float())
