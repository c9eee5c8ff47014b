"""What multiplies by a packed weight, held against float64 products with the dequantized one."""

import copy

import pytest
import torch

from lorakit.kernels.packed import weight as packed_weight
from lorakit.kernels.packed.int8 import Int8
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.kernels.packed.packing import nbytes, rows, whole
from lorakit.kernels.packed.weight import PackedWeight, workspaces


@pytest.fixture
def dense():
    torch.manual_seed(0)
    return torch.randn(200, 96)


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request, monkeypatch):
    if request.param == "many blocks":
        monkeypatch.setattr(packed_weight, "LARGEST", 64 * 96)
    workspaces.forget()


def test_int8_is_within_half_a_step(dense):
    packing = Int8.of(dense)
    step = dense.abs().amax(1, keepdim=True) / 127
    assert ((whole(packing, torch.float32) - dense).abs() <= step * 0.5001).all()
    assert nbytes(packing) == 200 * 96 + 200 * 4


def test_int8_keeps_zeros():
    assert not whole(Int8.of(torch.zeros(3, 5)), torch.float32).any()


def test_any_rows(dense):
    packing = Int8.of(dense)
    assert torch.equal(rows(packing, 3, 71, torch.float32), whole(packing, torch.float32)[3:71])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 33])
def test_products(dense, dtype, count):
    weight = PackedWeight(Int8.of(dense), dtype)
    wide = whole(weight.packing, torch.float64)
    x, y, g = (torch.randn(count, n).to(dtype) for n in (96, 200, 200))
    grad = torch.randn(count, 96).to(dtype)
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
        assert got.dtype == dtype
        assert (got.double() - want).abs().max() <= close * want.abs().max()


@pytest.mark.usefixtures("blocks")
def test_the_workspace_stays(dense):
    weight = PackedWeight(Int8.of(dense), torch.float32)
    weight.product(torch.randn(8, 96))
    place = workspaces.of(1, 1, torch.float32, torch.device("cpu")).data_ptr()
    weight.input_gradient(torch.randn(8, 200))
    assert workspaces.of(1, 1, torch.float32, torch.device("cpu")).data_ptr() == place


def test_a_layer_moves_and_is_saved_without_losing_its_scales(dense):
    layer = PackedLinear(Int8.of(dense), torch.float32, torch.randn(200))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.to(torch.bfloat16)
    assert layer.scales.dtype == torch.float32
    assert torch.equal(layer.scales, before["scales"])
    assert layer(torch.randn(2, 96).bfloat16()).dtype == torch.bfloat16
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16
    twin = copy.deepcopy(layer)
    twin.scales.zero_()
    assert layer.scales.any()
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.weight, layer.weight)
    assert set(before) == {"quants", "scales", "bias"}


def test_a_layer_on_the_meta_device(dense):
    layer = PackedLinear(Int8.of(dense), torch.bfloat16).to("meta")
    assert layer.frozen.device.type == "meta"
    assert layer(torch.empty(3, 96, dtype=torch.bfloat16, device="meta")).shape == (3, 200)


def test_gradient_of_the_input_of_a_layer(dense):
    layer = PackedLinear(Int8.of(dense), torch.float64, torch.randn(200))
    x = torch.randn(2, 3, 96, dtype=torch.float64, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    y = layer(x)
    want = twin @ whole(layer.packing, torch.float64).T + layer.bias
    torch.testing.assert_close(y, want)
    slope = torch.randn_like(y)
    y.backward(slope)
    want.backward(slope)
    torch.testing.assert_close(x.grad, twin.grad)
    assert not [p for p in layer.parameters() if p.requires_grad]
