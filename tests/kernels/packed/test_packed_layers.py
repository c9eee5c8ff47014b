"""Pairs beside packed weights: gradients against float64 autograd through the dequantized weight."""

import pytest
import torch
from torch import nn

import lorakit.kernels.packed.weight as packed_weight
from lorakit.errors import TargetError
from lorakit.kernels.block import gated_mlp, normed_group
from lorakit.kernels.groups import Linear, LowRank
from lorakit.kernels.packed.counting import count_parameters, packing_of, weight_bytes
from lorakit.kernels.packed.four_bits import FourBits
from lorakit.kernels.packed.fp8 import Fp8
from lorakit.kernels.packed.int8 import Int8
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.kernels.packed.packing import whole
from lorakit.lora import LoraSpec, attach, detach, plan
from lorakit.merging.merge import merged_model

MAKERS = {"nf4": FourBits.nf4, "int4": FourBits.int4, "int8": Int8.of, "fp8": Fp8.of}


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


@pytest.fixture(params=["whole", "blocks"])
def blocks(request, monkeypatch):
    if request.param == "blocks":
        monkeypatch.setattr(packed_weight, "LARGEST", 1)


def a_model(make, dtype=torch.float32):
    torch.manual_seed(0)
    first, second = (
        PackedLinear(make(torch.randn(o, i) / 8), dtype, torch.randn(o))
        for o, i in [(192, 64), (64, 192)]
    )
    return nn.Sequential(first, nn.ReLU(), second, nn.Linear(64, 8).to(dtype))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_pairs(make, dtype):
    model = attach(a_model(make, dtype), LoraSpec(rank=4, targets=("0", "2")))
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.B)
    before = {n: t.clone() for n, t in model.state_dict().items() if "base" in n}
    x, slope = torch.randn(10, 64, dtype=dtype), torch.randn(10, 8, dtype=dtype)
    model(x).backward(slope)
    wide = x.double()
    leaves = {}
    for number in (0, 2):
        layer = model[number]
        A, B = (p.detach().double().requires_grad_() for p in (layer.A, layer.B))
        leaves[number] = A, B
        W = whole(layer.base.packing, torch.float64)
        wide = wide @ W.T + layer.base.bias.double() + layer.scale * (wide @ A.T) @ B.T
        wide = wide.relu() if number == 0 else wide
    out = wide @ model[3].weight.double().T + model[3].bias.double()
    out.backward(slope.double())
    for number, (A, B) in leaves.items():
        for got, want in [(model[number].A.grad, A.grad), (model[number].B.grad, B.grad)]:
            torch.testing.assert_close(
                got.double(), want, rtol=1e-4, atol=1e-5 * want.abs().max().item()
            )
    for name, tensor in model.state_dict().items():
        if "base" in name:
            assert torch.equal(tensor, before[name]), name


def test_fused_functions_give_what_a_dense_weight_gives(make):
    torch.manual_seed(1)
    x = torch.randn(7, 64, requires_grad=True)
    norm = torch.rand(64) + 0.5

    def linears(dense):
        made = []
        for out, width in [(128, 64), (128, 64), (64, 128)]:
            generator = torch.Generator().manual_seed(out)
            layer = PackedLinear(
                make(torch.randn(out, width, generator=generator) / 8), torch.float32
            )
            A = torch.randn(3, width, generator=generator).requires_grad_()
            B = torch.randn(out, 3, generator=generator).requires_grad_()
            weight = layer.weight if dense else layer.frozen
            made.append(Linear(weight, None, (LowRank(A, B, 0.5),)))
        return made

    results = []
    for dense in (True, False):
        gate, up, down = made = linears(dense)
        y = gated_mlp(x, norm, 1e-6, gate, up, down) + sum(
            part.sum() for part in normed_group(x, norm, 1e-6, [gate, up])
        )
        pairs = [t for each in made for p in each.pairs for t in (p.A, p.B)]
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *pairs])])
    for got, want in zip(*results[::-1], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_a_plan_counts_what_a_packed_weight_stands_for(make):
    model = a_model(make)
    chosen = plan(model, LoraSpec(rank=4, targets=("0", "2")))
    assert (
        chosen.total_parameters == 2 * 64 * 192 + 192 + 64 + 64 * 8 + 8 == count_parameters(model)
    )
    assert chosen.targets[0].frozen == 64 * 192 + 192
    assert packing_of(model) == model[0].packing.name
    assert weight_bytes(model) < 4 * count_parameters(model) / 2


def test_dropout_and_dora_read_the_dequantized_weight(make):
    for spec in (LoraSpec(rank=2, targets=("0",), dropout=0.5), LoraSpec(rank=2, targets=("0",))):
        model = attach(a_model(make), spec).train()
        x = torch.randn(3, 64)
        torch.testing.assert_close(model(x), detach(model)(x))


def test_merging_into_a_packed_base_is_refused(make):
    model = attach(a_model(make), LoraSpec(rank=2, targets=("0",)))
    with pytest.raises(
        TargetError, match=r"^0 cannot be merged: the base is held in .* base_dtype"
    ):
        merged_model(model)
