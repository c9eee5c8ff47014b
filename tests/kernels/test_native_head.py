"""The compiled head with its loss against cross-entropy in float64."""

import pytest
import torch
import torch.nn.functional as F

from kernel_sets import format_of, sets_with, used
from lorakit.kernels.compiled_head import compiled_head_loss


@pytest.fixture(params=sets_with("head_loss"))
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The number format of each set, which is forced."""
    return format_of(used(monkeypatch, request.param))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("tokens", "width", "words"),
    [(1, 8, 3), (37, 50, 1001), (600, 24, 385), (13, 130, 384), (20, 96, 769), (5, 33, 7)],
)
def test_equals_cross_entropy_in_float64(
    tokens: int, width: int, words: int, threads: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(words, width, generator=generator).to(dtype)
    labels = torch.randint(words, (tokens,), generator=generator)
    labels[-1] = words - 1
    exact = hidden.detach().double().requires_grad_()
    wanted = F.cross_entropy(exact @ weight.double().t(), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(wanted * 0.3, exact)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        loss = compiled_head_loss(hidden, weight, labels)
    finally:
        torch.set_num_threads(before)
    assert loss is not None
    (got,) = torch.autograd.grad(loss * 0.3, hidden)
    assert loss.dtype == torch.float32
    # Logits are stored in the set's format: those of 30 are rounded by .06 in bfloat16.
    of_loss, of_gradient = (1e-6, 1e-5) if dtype == torch.float32 else (4e-3, 4e-2)
    assert torch.isclose(loss.double(), wanted, rtol=of_loss, atol=10 * of_loss)
    assert (got - gradient).abs().max() < of_gradient * gradient.abs().max()


def test_without_a_gradient_the_loss_is_the_same(dtype: torch.dtype) -> None:
    hidden, weight = torch.randn(30, 16).to(dtype), torch.randn(90, 16).to(dtype)
    labels = torch.arange(30)
    alone = compiled_head_loss(hidden, weight, labels)
    beside = compiled_head_loss(hidden.requires_grad_(), weight, labels)
    assert alone is not None
    assert beside is not None
    assert torch.equal(alone, beside.detach())


def test_a_sure_token_keeps_its_gradient(dtype: torch.dtype) -> None:
    # Its probability rounds to 1 in float32: the gradient is what the others give.
    hidden = torch.tensor([[30.0, 0.0]], dtype=dtype).requires_grad_()
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]], dtype=dtype)
    loss = compiled_head_loss(hidden, weight, torch.tensor([0]))
    assert loss is not None
    (got,) = torch.autograd.grad(loss, hidden)
    exact = hidden.detach().double().requires_grad_()
    logits = exact @ weight.double().t()
    p = logits.softmax(1).detach()
    wanted = torch.stack([-(p[0, 1] + p[0, 2]), p[0, 1] + 2 * p[0, 2]])
    assert torch.allclose(
        got[0].double(), wanted, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=0
    )
    assert torch.isclose(loss.double(), -torch.log1p(-(p[0, 1] + p[0, 2])), rtol=1e-5, atol=0)


def test_not_a_number_stays_one(dtype: torch.dtype) -> None:
    weight = torch.randn(90, 16).to(dtype)
    weight[70] = torch.nan
    hidden = torch.randn(3, 16).to(dtype).requires_grad_()
    loss = compiled_head_loss(hidden, weight, torch.arange(3))
    assert loss is not None
    (got,) = torch.autograd.grad(loss, hidden)
    assert loss.isnan()
    assert got.isnan().all()


@pytest.mark.parametrize("why", ["no such word", "a trained head", "another format", "turned"])
def test_gives_way(why: str, dtype: torch.dtype) -> None:
    hidden, weight = torch.randn(4, 6).to(dtype), torch.randn(9, 6).to(dtype)
    labels = torch.zeros(4, dtype=torch.int64)
    if why == "no such word":
        labels[2] = 9
    elif why == "a trained head":
        weight.requires_grad_()
    elif why == "another format":
        hidden, weight = hidden.double(), weight.double()
    else:
        weight = weight.t().contiguous().t()
    assert compiled_head_loss(hidden, weight, labels) is None


def test_weighed_by_its_own_probability(dtype: torch.dtype) -> None:
    """Dynamic fine-tuning: each token's nats and gradient times p, which is a constant."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(530, 24, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(151, 24, generator=generator) / 2).to(dtype)
    labels = torch.randint(151, (530,), generator=generator)
    exact = hidden.detach().double().requires_grad_()
    nats = F.cross_entropy(exact @ weight.double().t(), labels, reduction="none")
    wanted = (nats * torch.exp(-nats).detach()).sum()
    (gradient,) = torch.autograd.grad(wanted, exact)
    loss = compiled_head_loss(hidden, weight, labels, True)
    assert loss is not None
    (got,) = torch.autograd.grad(loss, hidden)
    of_loss, of_gradient = (1e-6, 1e-5) if dtype == torch.float32 else (4e-3, 4e-2)
    assert torch.isclose(loss.double(), wanted, rtol=of_loss)
    assert (got - gradient).abs().max() < of_gradient * gradient.abs().max()
