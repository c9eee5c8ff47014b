"""The straight-through rule, against a hand-written one in float64."""

import pytest
import torch

from lorakit.kernels.packed.packing import whole
from lorakit.kernels.packed.through_rounding import RoundedSum, quantized_sum, rounded_linear
from lorakit.kernels.weights import DenseWeight

# QLoRA's table, appendix E.
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def nf4_by_hand(W):
    blocks, levels = W.double().reshape(-1, 64), torch.tensor(LEVELS, dtype=torch.float64)
    scales = blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / scales)[..., None] - levels).abs().argmin(-1)
    return (levels[nearest] * scales).view(W.shape)


def int8_by_hand(W):
    scales = W.double().abs().amax(1, keepdim=True) / 127
    return (W.double() / scales).round() * scales


BY_HAND = {"nf4": nf4_by_hand, "int8": int8_by_hand}
SCALE = 1.7


def tensors(dtype=torch.float32, out=96, width=128, rank=4):
    g = torch.Generator().manual_seed(0)
    W = torch.randn(out, width, generator=g).to(dtype)
    A = torch.randn(rank, width, generator=g)
    B = torch.randn(out, rank, generator=g)
    x = torch.randn(3, 5, width, generator=g).to(dtype)
    return W, A, B, torch.randn(out, generator=g).to(dtype), x


def oracle(how, W, A, B, b, x, grad):
    """y, dx, dA, dB in float64: M is a leaf, its gradient goes to W + s·B·A as it is."""
    A, B = A.double(), B.double()
    M = BY_HAND[how]((W.double() + SCALE * B @ A).float()).requires_grad_()
    x = x.double().requires_grad_()
    y = x @ M.T + b.double()
    (y * grad.double()).sum().backward()
    return y.detach(), x.grad, SCALE * B.T @ M.grad, SCALE * M.grad @ A.T


@pytest.mark.parametrize("how", ["nf4", "int8"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_values_and_gradients(how, dtype, tolerance):
    W, A, B, b, x = tensors(dtype)
    grad = torch.randn(3, 5, 96, generator=torch.Generator().manual_seed(1)).to(dtype)
    y, dx, dA, dB = oracle(how, W, A, B, b, x, grad)
    A, B, x = A.requires_grad_(), B.requires_grad_(), x.requires_grad_()
    packing = RoundedSum(how).of(DenseWeight(W), A, B, SCALE)
    found = rounded_linear(x, packing, b, A, B, SCALE)
    found.backward(grad)
    for ours, wanted in ((found.detach(), y), (x.grad, dx), (A.grad, dA), (B.grad, dB)):
        assert (ours.double() - wanted).norm() <= tolerance * wanted.norm()
    assert A.grad.dtype == torch.float32


@pytest.mark.parametrize("how", ["nf4", "int8"])
@pytest.mark.parametrize("width", [40, 64])
def test_in_blocks_of_rows(how, width, monkeypatch):
    import lorakit.kernels.packed.through_rounding as module

    W, A, B, _, _ = tensors(out=192, width=width)
    wanted = BY_HAND[how]((W.double() + SCALE * B.double() @ A.double()).float())
    monkeypatch.setattr(module, "LARGEST", 64 * width)
    packing = quantized_sum(how, DenseWeight(W), A, B, SCALE)
    found = whole(packing, torch.float64)
    close = (found - wanted).abs() <= 1e-5
    assert close.double().mean() > 0.999  # a number in the middle of two levels may go either way


def test_made_anew_when_a_or_b_changed_by_another_view():
    W, A, B, _, _ = tensors()
    flat = torch.cat([A.flatten(), B.flatten()])
    a, b = torch.nn.Parameter(A), torch.nn.Parameter(B)
    a.data, b.data = flat[: A.numel()].view(A.shape), flat[A.numel() :].view(B.shape)
    rounded = RoundedSum("int8")
    first = rounded.of(DenseWeight(W), a, b, SCALE)
    assert rounded.of(DenseWeight(W), a, b, SCALE) is first
    flat[-1] += 1.0
    second = rounded.of(DenseWeight(W), a, b, SCALE)
    assert not torch.equal(whole(second, torch.float32), whole(first, torch.float32))
    assert rounded.of(DenseWeight(W), a, b, 2 * SCALE) is not second


def test_the_frozen_weight_is_not_changed():
    W, A, B, b, x = tensors()
    before = W.clone()
    packing = RoundedSum("nf4").of(DenseWeight(W), A, B, SCALE)
    rounded_linear(x, packing, b, A, B, SCALE)
    assert torch.equal(W, before)
