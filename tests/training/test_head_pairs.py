"""A pair on the output head: the loss in chunks, its gradients, and every way that trains with it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from families import tiny
from lorakit.data.batches import Batch
from lorakit.execution.runnable import Runnable
from lorakit.kernels.groups import LowRank
from lorakit.kernels.head import chunked_head_loss
from lorakit.lora import LoraSpec, attach, lora_layers, plan
from lorakit.lora.jobs import Jobs
from lorakit.training.joint import JointLoss
from lorakit.training.loss import CausalLoss

WITH_HEAD = ("all-linear", "lm_head")


@pytest.mark.parametrize("rows", [5, 700])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_chunks_with_a_pair_are_the_formula(rows, dtype):
    """Against autograd through W + s·B·A in float64, all logits at once."""
    torch.manual_seed(0)
    L, D, V, R = rows, 12, 40, 3
    h, W, b = torch.randn(L, D), torch.randn(V, D), torch.randn(V)
    A, B = torch.randn(R, D), torch.randn(V, R) / 3
    labels = torch.randint(V, (L,))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    given = [
        x.to(t).requires_grad_()
        for x, t in ((h, dtype), (W, dtype), (b, dtype), (A, wide), (B, wide))
    ]
    oracle = [x.detach().double().requires_grad_() for x in given]
    loss = chunked_head_loss(*given[:3], labels, LowRank(given[3], given[4], 0.7))
    oh, oW, ob, oA, oB = oracle
    expected = F.cross_entropy(oh @ (oW + 0.7 * oB @ oA).t() + ob, labels, reduction="sum")
    (3 * loss).backward()
    (3 * expected).backward()
    close = 1e-12 if dtype == torch.float64 else 5e-2
    assert loss.item() == pytest.approx(expected.item(), rel=close)
    for ours, theirs in zip(given, oracle, strict=True):
        apart = (ours.grad.double() - theirs.grad).abs().max()
        assert apart <= close * theirs.grad.abs().max()


def moved(model, targets=WITH_HEAD, **spec):
    attach(model, LoraSpec(rank=3, targets=targets, **spec))
    torch.manual_seed(5)
    for layer in lora_layers(model).values():
        layer.B.data.normal_(std=0.3)
    return model


def a_batch():
    torch.manual_seed(1)
    lengths = (9, 4, 13)
    ids = torch.randint(5, 290, (sum(lengths),))
    positions = torch.cat([torch.arange(n) for n in lengths])
    weights = torch.ones(sum(lengths))
    weights[[0, 9, 13]] = 0.0
    return Batch(ids, positions, weights, lengths, (0, 1, 2))


def alone(model, batch):
    """Each row by transformers' own forward, which calls the head as a module."""
    total = 0
    for ids in batch.ids_T.split(list(batch.lengths_S)):
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        total = total + F.cross_entropy(logits.float(), ids[1:], reduction="sum")
    return total


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3"])
@pytest.mark.parametrize("targets", [WITH_HEAD, ("lm_head",)])
def test_loss_and_gradients_are_those_of_each_row_alone(family, targets):
    model, batch = moved(tiny(family), targets), a_batch()
    expected = alone(model, batch)
    expected.backward()
    theirs = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss, _ = CausalLoss(model)(batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert any(name.startswith("lm_head") for name in theirs)
    for name, gradient in theirs.items():
        ours = model.get_parameter(name).grad
        assert (ours - gradient).abs().max() <= 1e-4 * gradient.abs().max(), name


def test_a_pair_on_a_plain_head_keeps_the_chunks():
    model = moved(tiny("llama"))
    assert Runnable(model).head.pairs
    assert Runnable(moved(tiny("llama"), dropout=0.5)).head is None
    assert Runnable(moved(tiny("gemma2"))).head is None  # its logits are capped


class ScaledHead(nn.Linear):
    """As Dory's: a linear layer by its class, and not by what it computes."""

    def forward(self, x):
        return super().forward(x) * 0.25


def test_a_head_that_computes_something_else_is_asked_and_not_read():
    model, batch = tiny("llama"), a_batch()
    head = ScaledHead(48, 300, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    moved(model, ("all-linear",))
    loss, _ = CausalLoss(model)(batch)
    assert loss.item() == pytest.approx(alone(model, batch).item(), rel=1e-5)


def test_a_hook_on_the_head_is_seen():
    model, batch = moved(tiny("llama"), ("all-linear",)), a_batch()
    plain, _ = CausalLoss(model)(batch)
    model.lm_head.register_forward_hook(lambda _module, _inputs, y: y * 0.25)
    loss, _ = CausalLoss(model)(batch)
    assert loss.item() == pytest.approx(alone(model, batch).item(), rel=1e-5)
    assert abs(loss.item() - plain.item()) > 0.1


def test_jobs_that_share_a_pass_have_their_own_heads():
    base = tiny("llama")
    specs = [LoraSpec(rank=2, targets=WITH_HEAD), LoraSpec(rank=4, targets=("all-linear",))]
    specs.append(LoraSpec(rank=3, targets=("lm_head",)))
    jobs = Jobs(base, [plan(base, spec) for spec in specs], [0, 1, 2])
    torch.manual_seed(3)
    for layers in jobs.layers:
        for layer in layers.values():
            layer.B.data.normal_(std=0.3)
    batch = a_batch()
    together = JointLoss(jobs)([(0, batch), (1, batch), (2, batch)])
    sum(together).backward()
    for job, nll in enumerate(together):
        joint = {p: layer.B.grad.clone() for p, layer in jobs.layers[job].items()}
        for layer in jobs.layers[job].values():
            layer.B.grad = None
        jobs.install(job)
        expected = alone(base, batch)
        expected.backward()
        assert nll.item() == pytest.approx(expected.item(), rel=1e-5)
        for path, layer in jobs.layers[job].items():
            apart = (joint[path] - layer.B.grad).abs().max()
            assert apart <= 1e-4 * layer.B.grad.abs().max(), path
        jobs.install_all()
