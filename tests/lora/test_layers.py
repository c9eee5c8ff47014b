"""Each adapted layer: against the base with a changed weight, and its gradients."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lorakit.errors import TargetError
from lorakit.lora import LoraSpec, attach, lora_layers


def dense_delta(layer):
    """s·B·A in the base's layout, summed in loops over the rank; nothing of lora's is used."""
    A, B = layer.A.detach(), layer.B.detach().flatten(1)
    total = sum(torch.tensordot(B[:, r], A[r], dims=0) for r in range(layer.rank))
    total = layer.scale * total
    transposed = type(layer.base).__name__ in ("Conv1D", "Embedding")
    return total.t() if transposed else total


def test_output_is_that_of_the_base_with_the_product_added(case):
    layer = case.layer()
    if layer.geometry.groups > 1:
        pytest.skip("a grouped base has no place for the product")
    changed = copy.deepcopy(layer.base)
    changed.weight = nn.Parameter(layer.weight + dense_delta(layer))
    y = layer(case.input())
    if type(changed) is nn.Embedding and changed.padding_idx is not None:
        # A lookup reads the padding row like any other; only its gradient is withheld.
        assert torch.equal(changed(case.x), changed.weight[case.x])
    torch.testing.assert_close(y, changed(case.input()))


def test_a_grouped_convolution_is_two_convolutions_one_group_at_a_time():
    torch.manual_seed(0)
    base = nn.Conv2d(4, 6, 3, groups=2, padding=1).double()
    model = attach(nn.Sequential(base), LoraSpec(rank=4, alpha=2.0, targets=("0",)))
    layer = lora_layers(model)["0"]
    nn.init.normal_(layer.B)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    h = nn.functional.conv2d(x, layer.A, padding=1)
    low = torch.cat(
        [
            torch.einsum(
                "or,nrhw->nohw", layer.B[3 * g : 3 * g + 3, :, 0, 0], h[:, 2 * g : 2 * g + 2]
            )
            for g in range(2)
        ],
        dim=1,
    )
    torch.testing.assert_close(model(x), base(x) + 0.5 * low)


def test_gradients_are_finite_differences(case):
    layer, x = case.layer(), case.input()
    # The padding row takes no gradient by design, so a finite difference would disagree on it.
    if isinstance(layer.base, nn.Embedding) and layer.base.padding_idx is not None:
        x = torch.tensor([[0, 5], [10, 1]])
    pair = (layer.A, layer.B)

    def run(A, B, *x_given):
        return functional_call(layer, {"A": A, "B": B}, x_given or (x,))

    assert torch.autograd.gradcheck(run, pair)
    if x.is_floating_point():
        assert torch.autograd.gradcheck(run, (*pair, x.clone().requires_grad_()))


def test_the_padding_row_of_A_takes_no_gradient():
    model = attach(
        nn.Sequential(nn.Embedding(11, 4, padding_idx=3)), LoraSpec(rank=2, targets=("0",))
    )
    model(torch.tensor([3, 5])).sum().backward()
    grad = lora_layers(model)["0"].A.grad
    assert not grad[:, 3].any()
    assert grad[:, 5].any()


# Shares of the largest output. bfloat16: a weight rounded to 8 bits against sums that are rounded
# several times on the way, of up to 40 terms.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
def test_merged_base_is_forward(case, dtype, tolerance):
    layer, x = case.layer(dtype), case.input(dtype)
    if layer.geometry.groups > 1:
        with pytest.raises(TargetError, match=r"groups=2 cannot take s·B·A: A mixes all input"):
            layer.merged_base()
        return
    before = layer.weight.clone()
    merged = layer.merged_base()
    assert type(merged) is type(layer.base)
    assert merged.weight.dtype == dtype
    assert not merged.weight.requires_grad
    assert torch.equal(layer.weight, before)
    y = layer(x)
    size = y.abs().max().item()
    torch.testing.assert_close(merged(x), y, rtol=0, atol=tolerance * size)
    if layer.bias is not None:
        assert torch.equal(merged.bias, layer.bias)


def test_an_integer_base_refuses_merging():
    model = attach(nn.Sequential(nn.Linear(4, 4)), LoraSpec(rank=2, targets=("0",)))
    layer = lora_layers(model)["0"]
    layer.base.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(TargetError, match=r"of dtype torch\.int8 cannot take s·B·A: load the base"):
        layer.merged_base()


def test_pairs_are_float32_over_a_narrow_base(case):
    narrow = case.layer(torch.bfloat16)
    assert narrow.A.dtype == narrow.B.dtype == torch.float32
    assert narrow(case.input(torch.bfloat16)).dtype == torch.bfloat16


def test_the_base_is_reachable_as_before(case):
    weight, bias = case.base.weight, dict(case.base.named_parameters()).get("bias")
    layer = case.layer()
    assert layer.base is case.base
    assert layer.weight is weight
    assert layer.bias is bias
    assert f"rank={case.rank}, scale={3.0 / case.rank:g}" in repr(layer)


class TestDropout:
    def test_only_in_training(self, case):
        layer, without, x = case.layer(dropout=0.5), case.layer(dropout=0.0), case.input()
        assert torch.equal(layer.eval()(x), without.eval()(x))
        if layer.kind != "embedding":
            assert not torch.allclose(layer.train()(x), without.train()(x))

    def test_only_on_the_low_rank_path(self, case):
        layer, x = case.layer(dropout=0.5), case.input()
        with torch.no_grad():
            layer.B.zero_()
        torch.testing.assert_close(layer.train()(x), layer.base(x))

    def test_it_drops_whole_inputs_and_scales_the_rest(self):
        torch.manual_seed(0)
        model = attach(
            nn.Sequential(nn.Linear(1, 1).double()),
            LoraSpec(rank=1, alpha=1.0, targets=("0",), dropout=0.25),
        )
        layer = lora_layers(model)["0"]
        with torch.no_grad():
            layer.A.fill_(1.0)
            layer.B.fill_(1.0)
        x = torch.ones(4000, 1, dtype=torch.float64)
        low = (layer.train()(x) - layer.base(x)).detach()
        kept = low > 0.5
        torch.testing.assert_close(low[kept], torch.full_like(low[kept], 1 / 0.75))
        assert not low[~kept].abs().max() > 1e-12
        # 4 standard deviations of a share of 0.75 in 4000 draws: 0.027.
        assert kept.double().mean().item() == pytest.approx(0.75, abs=0.027)

    def test_an_embedding_has_none(self):
        model = attach(
            nn.Sequential(nn.Embedding(5, 4)), LoraSpec(rank=2, targets=("0",), dropout=0.9)
        )
        layer = lora_layers(model)["0"].train()
        nn.init.normal_(layer.A)
        ids = torch.arange(5)
        assert torch.equal(layer(ids), layer(ids))
