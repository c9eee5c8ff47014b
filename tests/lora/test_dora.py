"""DoRA: every kind of layer against the base with a changed weight, and its gradients.

The oracle is a loop over the outputs in float64: a row of W + s·B·A, brought to the length m.
"""

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lorakit.errors import TargetError
from lorakit.kernels.packed.int8 import Int8
from lorakit.kernels.packed.linear import PackedConv1D, PackedLinear
from lorakit.lora import LoraSpec, attach, lora_layers, plan
from lorakit.lora.rows import BaseRows
from lorakit.lora.variant import Capability

S = 1.5


def dora(case, dtype=torch.float64, **spec):
    """The case's module with DoRA, A, B and the magnitudes at random."""
    if getattr(case.base, "groups", 1) > 1:
        pytest.skip("a grouped convolution is refused")
    layer = case.layer(dtype, dora=True, alpha=S * case.rank, **spec)
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        # An update half as large as W: a factor near 0 would lose digits of 16 bits.
        size = (layer.B.flatten(1) @ layer.A.flatten(1)).norm()
        layer.B.mul_(0.5 * layer.base.weight.float().norm() / (S * size))
        noise = torch.rand(layer.magnitude.shape, generator=g, dtype=torch.float64)
        layer.magnitude.mul_(0.5 + noise)
    return layer


def turned(layer):
    return type(layer.base).__name__ in ("Conv1D", "Embedding")


def changed_weight(layer):
    """m · (W + s·B·A) / ‖W + s·B·A‖ by a loop over outputs, in the base's layout."""
    W = layer.base.weight.detach().double()
    W = W.t() if turned(layer) else W
    A, B = layer.A.detach().double(), layer.B.detach().double().flatten(1)
    m = layer.magnitude.detach().double().flatten()
    rows = []
    for o in range(len(W)):
        row = W[o] + S * sum(B[o, r] * A[r] for r in range(len(A)))
        rows.append(m[o] * row / math.sqrt(sum(float(w) ** 2 for w in row.flatten())))
    out = torch.stack(rows)
    return out.t() if turned(layer) else out


def by_hand(layer, x):
    base = copy.deepcopy(layer.base).double()
    base.weight = nn.Parameter(changed_weight(layer))
    return base(x)


def test_output_is_that_of_the_base_with_the_changed_weight(case):
    layer = dora(case)
    torch.testing.assert_close(layer(case.input()), by_hand(layer, case.input()))
    assert (by_hand(layer, case.input()) - layer.base(case.input())).abs().max() > 0.01


def test_nothing_changes_before_training(case):
    if getattr(case.base, "groups", 1) > 1:
        pytest.skip("a grouped convolution is refused")
    for dtype in (torch.float32, torch.bfloat16):
        base = copy.deepcopy(case.base).to(dtype)
        x, spec = case.input(dtype), LoraSpec(rank=case.rank, dora=True, targets=("0",))
        model = attach(nn.Sequential(copy.deepcopy(base)), spec)
        norms = base.weight.float()
        norms = norms.t() if type(base).__name__ in ("Conv1D", "Embedding") else norms
        torch.testing.assert_close(
            lora_layers(model)["0"].magnitude.flatten(), norms.flatten(1).norm(dim=1)
        )
        # In 16 bits the bias is added to a rounded product, beside plain pairs too.
        plain = attach(nn.Sequential(copy.deepcopy(base)), LoraSpec(rank=case.rank, targets=("0",)))
        assert torch.equal(model(x), plain(x))
        if dtype == torch.float32:
            torch.testing.assert_close(model(x), base(x))


def test_gradients_are_those_with_the_norm_held_constant(case):
    """Finite differences of y = m / c · (W + s·B·A) x + b with c, the norm, as a constant."""
    layer, x = dora(case), case.input()
    if isinstance(layer.base, nn.Embedding) and layer.base.padding_idx is not None:
        x = torch.tensor([[0, 5], [10, 1]])  # the padding row takes no gradient by design
    names = list(layer.tensors)
    m = layer.magnitude.detach().flatten()
    c = m / layer.factor().detach()
    W = layer.base.weight.detach()
    W = W.t() if turned(layer) else W

    def held(A, B, magnitude, *x_given):
        f = (magnitude.flatten() / c).view(-1, *[1] * (W.dim() - 1))
        product = (B.flatten(1) @ A.flatten(1)).view(len(B), *A.shape[1:])
        weight = f * (W + S * product)
        weight = weight.t() if turned(layer) else weight
        return functional_call(layer.base, {"weight": weight}, x_given or (x,))

    given = [nn.Parameter(tensor.detach().clone()) for tensor in layer.tensors.values()]
    if x.is_floating_point():
        given.append(nn.Parameter(x.clone()))
    assert torch.autograd.gradcheck(held, given)
    y = held(*given)
    g = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(5))
    expected = torch.autograd.grad(y, given, g)
    named = dict(zip(names, given, strict=False))
    found = torch.autograd.grad(functional_call(layer, named, tuple(given[3:]) or (x,)), given, g)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_merged_base_is_forward(case, dtype):
    layer, x = dora(case, dtype), case.input(dtype)
    with torch.no_grad():
        y = layer(x)
        assert y.dtype == dtype
        merged = layer.merged_base()(x)
        # Shares of the largest output, as for a plain pair.
        allowed = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
        size = y.abs().max().item()
        torch.testing.assert_close(merged, y, rtol=0, atol=allowed * size)
    assert layer.magnitude.dtype == torch.promote_types(dtype, torch.float32)


def test_dropout_leaves_the_bases_own_product_whole(case):
    """Y = W x + b + (f - 1) W x' + f · s·B A x' with x' the inputs that are left, as in peft."""
    layer, x = dora(case, dropout=0.5), case.input()
    if not x.is_floating_point():
        assert torch.equal(layer.train()(x), layer.eval()(x))
        return
    torch.manual_seed(4)
    y = layer.train()(x)
    torch.manual_seed(4)
    left = nn.functional.dropout(x, 0.5)
    base = copy.deepcopy(layer.base)
    bare = by_hand(layer, left) - base(left)  # the bias is in both
    torch.testing.assert_close(y, base(x) + bare)
    assert not torch.allclose(y, layer.eval()(x))


def test_a_row_of_zeros_stays_zero_and_can_be_trained():
    """Peft divides 0 by 0 there."""
    base = nn.Linear(4, 3)
    with torch.no_grad():
        base.weight[1] = 0
    model = attach(nn.Sequential(base), LoraSpec(rank=2, dora=True, targets=("0",)))
    x = torch.randn(5, 4)
    assert torch.equal(model(x), base(x))
    model(x).square().sum().backward()
    layer = lora_layers(model)["0"]
    assert layer.B.grad.isfinite().all()
    assert layer.B.grad[1].any()


def test_small_steps_of_the_magnitude_are_not_rounded_away_in_16_bits():
    """A factor of 1 + .99 · 2⁻⁸ is 1 in bfloat16; on average the outputs have to grow by it all the same."""
    base = nn.Linear(8, 64, bias=False).bfloat16()
    model = attach(nn.Sequential(base), LoraSpec(rank=2, dora=True, targets=("0",)))
    layer = lora_layers(model)["0"]
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = model(x).float()
    with torch.no_grad():
        layer.magnitude.mul_(1 + 0.99 * 2.0**-8)
    moved = (model(x).float().abs().sum() / before.abs().sum()).item() - 1
    assert 2.0**-9 < moved < 2.0**-7


def test_the_norm_follows_a_base_that_is_moved_to_another_format():
    """‖W‖² is remembered; in float64 it has to be computed anew."""
    torch.manual_seed(0)
    model = attach(nn.Sequential(nn.Linear(6, 5)), LoraSpec(rank=2, dora=True, targets=("0",)))
    layer = lora_layers(model)["0"]
    layer.factor()
    layer.double()
    exact = layer.base.weight.norm(dim=1)
    torch.testing.assert_close(layer.magnitude.detach() / layer.factor(), exact, rtol=1e-14, atol=0)


def test_without_gradients_the_factor_follows_every_change(monkeypatch):
    """It is remembered, so that tokens do not cost a pass over W each; `.data` is written unseen."""
    torch.manual_seed(0)
    model = attach(nn.Sequential(nn.Linear(6, 5)), LoraSpec(rank=2, dora=True, targets=("0",)))
    layer, x = lora_layers(model)["0"], torch.randn(3, 6)
    passes = []
    real = BaseRows.products
    monkeypatch.setattr(BaseRows, "products", lambda self, A: passes.append(1) or real(self, A))
    with torch.no_grad():
        model(x), model(x)
        assert len(passes) == 1
        for tensor in layer.tensors.values():
            tensor.data.add_(0.5)
            seen = model(x)
            with torch.enable_grad():
                fresh = model(x).detach()
            assert torch.equal(seen, fresh)


@pytest.mark.parametrize("kind", [PackedLinear, PackedConv1D])
def test_over_a_packed_base_the_norm_is_that_of_the_dequantized_weight(kind):
    torch.manual_seed(0)
    packed = kind(Int8.of(torch.randn(5, 8)), torch.float32, torch.randn(5))
    base, x = copy.deepcopy(packed), torch.randn(3, 8)
    model = attach(nn.Sequential(packed), LoraSpec(rank=2, alpha=3.0, dora=True, targets=("0",)))
    assert torch.equal(model(x), base(x))
    layer = lora_layers(model)["0"]
    with torch.no_grad():
        for tensor in layer.tensors.values():
            tensor.add_(torch.randn(tensor.shape))
    W = (base.weight.t() if kind is PackedConv1D else base.weight) + 1.5 * layer.B @ layer.A
    expected = x @ (layer.magnitude[:, None] * W / W.norm(dim=1, keepdim=True)).T + base.bias
    torch.testing.assert_close(model(x), expected)


def test_a_grouped_convolution_is_refused():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    with pytest.raises(TargetError, match=r"0: a convolution with groups=2 has no W \+ s·B·A"):
        plan(model, LoraSpec(rank=2, dora=True, targets=("0",)))


def test_experts_are_refused():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 4, 5))

    model = nn.ModuleDict({"experts": Experts()})
    spec = {"rank": 2, "targets": (), "target_parameters": ("experts.up",)}
    assert plan(model, LoraSpec(**spec)).targets
    with pytest.raises(TargetError, match="a bare parameter cannot be adapted by DoRA, in peft"):
        plan(model, LoraSpec(**spec, dora=True))


def test_ten_steps_differ_from_plain_loras(stack):
    ids = torch.arange(16).view(2, 8)
    losses = {}
    for on in (False, True):
        model = attach(copy.deepcopy(stack), LoraSpec(rank=2, targets=("up_proj",), dora=on))
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        losses[on] = []
        for _ in range(10):
            loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten().roll(-1))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[on].append(loss.item())
    assert losses[True][0] == losses[False][0]
    assert losses[True][-1] < losses[True][0]
    assert abs(losses[True][-1] - losses[False][-1]) > 1e-4


def test_what_may_be_done_with_it():
    variant = LoraSpec(dora=True).variant
    able = {Capability.MERGE, Capability.MERGE_ROWS, Capability.SLOTS, Capability.DROPOUT}
    assert variant.capabilities == {Capability.FACTOR, *able}
    both = LoraSpec(dora=True, rslora=True).variant
    assert both.capabilities == variant.capabilities
    assert (variant.scale(8.0, 4), both.scale(8.0, 4)) == (2.0, 4.0)
