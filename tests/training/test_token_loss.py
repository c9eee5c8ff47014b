"""Dynamic fine-tuning and label smoothing against torch's own cross-entropy in float64."""

import pytest
import torch
import torch.nn.functional as F
from test_joint import task
from test_loss import adapted, gradients, rows

from families import tiny
from lorakit.data.batches import micro_batches
from lorakit.errors import ConfigError
from lorakit.kernels.groups import LowRank
from lorakit.kernels.head import chunked_head_loss, label_loss
from lorakit.kernels.token_loss import PLAIN, TokenLoss
from lorakit.lora import LoraSpec, plan
from lorakit.lora.jobs import Jobs
from lorakit.training import CausalLoss, JointLoss, TrainSpec
from lorakit.training.loss import token_loss

KINDS = [
    TokenLoss(by_probability=True),
    TokenLoss(smoothing=0.1),
    TokenLoss(by_probability=True, smoothing=0.3),
]


def by_definition(logits, labels, kind):
    """Σ ℓ by torch.nn.functional.cross_entropy, in the format of the logits."""
    each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=kind.smoothing)
    if kind.by_probability:
        each = each * logits.softmax(1).gather(1, labels[:, None])[:, 0].detach()
    return each.sum()


def head(count, width=24, words=151, rank=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(count, width), (words, width), (words,), (rank, width), (words, rank)]
    tensors = [torch.randn(*shape, generator=generator) / shape[-1] ** 0.25 for shape in shapes]
    return *tensors, torch.randint(words, (count,), generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 37, 530])
@pytest.mark.parametrize("what", ["frozen", "trained", "pair"])
def test_the_chunked_head_equals_the_definition(kind, count, what):
    hidden, weight, bias, A, B, labels = head(count)
    wanted_of = {"frozen": [hidden], "trained": [hidden, weight, bias], "pair": [hidden, A, B]}
    trained = [t.requires_grad_() for t in wanted_of[what]]
    bias_V = None if what == "frozen" else bias
    pair = LowRank(A, B, 0.7) if what == "pair" else None
    got = chunked_head_loss(hidden, weight, bias_V, labels, pair, kind)
    found = torch.autograd.grad(0.3 * got, trained)

    exact = {id(t): t.detach().double().requires_grad_() for t in trained}
    wide = [exact.get(id(t), t.detach().double()) for t in (hidden, weight, bias, A, B)]
    logits = wide[0] @ wide[1].t()
    if bias_V is not None:
        logits = logits + wide[2]
    if pair is not None:
        logits = logits + 0.7 * (wide[0] @ wide[3].t()) @ wide[4].t()
    wanted = by_definition(logits, labels, kind)
    expected = torch.autograd.grad(0.3 * wanted, [exact[id(t)] for t in trained])
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    for mine, true in zip(found, expected, strict=True):
        assert float((mine - true).norm()) <= 1e-5 * float(true.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_logits_that_are_there(kind):
    *_, labels = head(40)
    logits = 3 * torch.randn(40, 151, generator=torch.Generator().manual_seed(1))
    logits[0, labels[0]] = 24.0  # its probability rounds to 1 in float32
    exact = logits.double().requires_grad_()
    wanted = by_definition(exact, labels, kind)
    (true,) = torch.autograd.grad(wanted, exact)
    got = label_loss(logits.requires_grad_(), labels, kind)
    (mine,) = torch.autograd.grad(got, logits)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=0.0)
    assert float((mine - true).norm()) <= 1e-6 * float(true.norm())
    assert float((mine[0] - true[0]).norm()) <= 1e-3 * float(true[0].norm())


def test_a_position_without_a_label_counts_for_nothing():
    *_, labels = head(20)
    logits = torch.randn(20, 151, generator=torch.Generator().manual_seed(2)).requires_grad_()
    labels[3] = -1
    kept = torch.arange(20) != 3
    for kind in KINDS:
        got = label_loss(logits, labels, kind)
        wanted = by_definition(logits[kept], labels[kept], kind)
        torch.testing.assert_close(got, wanted)
        assert not torch.autograd.grad(got, logits)[0][3].any()


def test_smoothing_is_that_of_transformers():
    from transformers.trainer_pt_utils import LabelSmoother

    *_, labels = head(30)
    logits = torch.randn(30, 151, generator=torch.Generator().manual_seed(3))
    theirs = LabelSmoother(epsilon=0.2)({"logits": logits[None]}, labels[None])
    got = label_loss(logits, labels, TokenLoss(smoothing=0.2)) / 30
    torch.testing.assert_close(got, theirs)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_trains_by_it_and_is_measured_in_nats(family, kind):
    """gemma2's head caps its scores: the loss is that of logits there."""
    model = adapted(family)
    table = rows()
    (batch,) = micro_batches(table, range(len(table)), 1000)
    scores, labels = [], []
    for row in table:
        ids = torch.tensor(row.ids).long()
        logits = model(ids[None], use_cache=False).logits[0]
        wanted = [t for t in range(1, len(ids)) if row.weight[t]]
        scores.append(logits[[t - 1 for t in wanted]])
        labels.append(ids[wanted])
    wanted = by_definition(torch.cat(scores), torch.cat(labels), kind)
    loss = CausalLoss(model, kind=kind)
    got, _ = loss(batch, training=True)
    torch.testing.assert_close(got, wanted, rtol=2e-5, atol=1e-4)
    found, expected = gradients(model, got), gradients(model, wanted)
    assert float((found - expected).norm()) < 1e-4 * float(expected.norm())
    assert torch.equal(loss(batch)[0], CausalLoss(model)(batch)[0])


def test_jobs_that_share_a_pass_have_losses_of_their_own(monkeypatch):
    monkeypatch.setenv("LORAKIT_KERNELS", "plain")
    kinds = [PLAIN, *KINDS]
    model = tiny("llama")
    jobs = Jobs(model, [plan(model, LoraSpec(rank=2)) for _ in kinds], list(range(len(kinds))))
    jobs.install_all()
    part = [(j, micro_batches(task(j, 3), range(3), 1000)[0]) for j in range(len(kinds))]
    got = JointLoss(jobs, kinds=kinds)(part)
    for (job, batch), nats, kind in zip(part, got, kinds, strict=True):
        jobs.install(job)
        alone, _ = CausalLoss(model, kind=kind)(batch, training=True)
        torch.testing.assert_close(nats, alone)
        jobs.install_all()


def test_what_a_run_asks_for():
    assert token_loss(TrainSpec()).is_plain
    assert token_loss(TrainSpec(loss="dft", label_smoothing=0.1)) == TokenLoss(True, 0.1)
    with pytest.raises(ConfigError, match="loss must be 'nll' or 'dft'; it is 'mse'"):
        TrainSpec(loss="mse")
    with pytest.raises(ConfigError, match="label_smoothing is a share"):
        TrainSpec(label_smoothing=1.0)
