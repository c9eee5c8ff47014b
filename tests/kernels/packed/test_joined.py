"""Packed layers that share their input, as one product: held against float64, layer by layer."""

import pytest
import torch

from lorakit.kernels import native
from lorakit.kernels.packed.four_bits import FourBits
from lorakit.kernels.packed.int8 import Int8
from lorakit.kernels.packed.joint import JointWeight
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.kernels.packed.packing import whole

MIXES = {
    "alike": (FourBits.nf4, FourBits.nf4, FourBits.nf4),
    "two that turn": (FourBits.nf4, FourBits.int4, FourBits.nf4),
    "one that does not": (FourBits.nf4, Int8.of, FourBits.nf4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 4, 9])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernels", ["chosen", native.PLAIN])
def test_side_by_side(mix, tokens, bias, dtype, kernels, monkeypatch):
    if kernels == native.PLAIN:
        monkeypatch.setenv(native.VARIABLE, kernels)
    torch.manual_seed(0)
    layers = [
        PackedLinear(of(torch.randn(out, 96)), dtype, torch.randn(out) if bias else None)
        for of, out in zip(MIXES[mix], (40, 24, 7), strict=True)
    ]
    x = torch.randn(tokens, 96).to(dtype)
    wanted = torch.cat(
        [
            x.double() @ whole(each.packing, torch.float64).T
            + (each.bias.double() if bias else 0.0)
            for each in layers
        ],
        dim=1,
    )
    got = JointWeight(layers)(x)
    close = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert got.dtype == dtype
    assert (got.double() - wanted).abs().max() <= close * wanted.abs().max()
