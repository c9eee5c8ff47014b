"""Tokens whose probability rounds to 1: their loss and their gradient do not vanish.

The oracle is the formula in float64, on logits that every format here holds exactly.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import lorakit
from lorakit.data import Encoded, TokenTable
from lorakit.evaluation import likelihood
from lorakit.kernels.groups import LowRank
from lorakit.kernels.head import chunked_head_loss, label_loss, label_nats

# 16.6 nats is where 1 + exp(-lead) rounds to 1 in float32. Each is exact in 8 bits.
LEADS = (0.0, 0.5, 0.75, 4.0, 12.0, 17.0, 20.0, 30.0, 60.0, -20.0)
WORDS = 7


def logits_and_labels():
    """Row l: the label leads the best other word by LEADS[l]; the others lie 0 to 1.25 below it."""
    labels = torch.arange(len(LEADS)) % WORDS
    logits = -0.25 * torch.arange(WORDS, dtype=torch.float64).repeat(len(LEADS), 1)
    others = torch.ones_like(logits).scatter_(1, labels[:, None], 0).bool()
    logits -= logits.masked_fill(~others, -99).amax(1, keepdim=True)
    return logits.scatter_(1, labels[:, None], torch.tensor(LEADS).double()[:, None]), labels


def oracle(logits, labels):
    """Nats of each row, and softmax - onehot, in float64: Σ over the others, by hand."""
    label = logits.gather(1, labels[:, None])
    ratios = (logits - label).exp().scatter_(1, labels[:, None], 0.0)  # p_j / p_label
    rest = ratios.sum(1, keepdim=True)
    slope = (ratios / (1 + rest)).scatter_(1, labels[:, None], -rest / (1 + rest))
    return torch.log1p(rest)[:, 0], slope


def near(got, wanted, relative):
    """Element by element, however small."""
    return bool(((got.double() - wanted).abs() <= relative * wanted.abs() + 1e-30).all())


FORMATS = [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float64, 1e-12)]


@pytest.mark.parametrize(("dtype", "close"), FORMATS)
def test_by_logits(dtype, close):
    wide, labels = logits_and_labels()
    logits = wide.clone().to(dtype).requires_grad_()
    assert torch.equal(logits.double(), wide)
    nats, slope = oracle(wide, labels)
    for row in range(len(LEADS)):
        loss = label_loss(logits[row : row + 1], labels[row : row + 1])
        (grad,) = torch.autograd.grad(3 * loss, logits)
        assert near(loss, nats[row], 1e-5), LEADS[row]
        assert near(grad[row], 3 * slope[row], close), LEADS[row]
    assert label_loss(logits.detach(), labels).item() == pytest.approx(float(nats.sum()), rel=1e-6)
    assert torch.equal(logits.double(), wide)


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize(("dtype", "close"), FORMATS)
def test_by_a_head_in_chunks(dtype, close, pair):
    """The logits are the head's weight itself, read by one-hot hidden states."""
    wide, labels = logits_and_labels()
    hidden = torch.eye(len(LEADS), dtype=dtype).requires_grad_()
    W, beside = wide.t().to(dtype).contiguous(), None
    if pair:  # half of the logits by W, half by 2·B·A
        W = W / 2
        A = torch.eye(len(LEADS)).to(torch.promote_types(dtype, torch.float32))
        beside = LowRank(A, W.to(A.dtype) / 2, 2.0)
    W.requires_grad_()
    loss = chunked_head_loss(hidden, W, None, labels, beside)
    loss.backward()
    nats, slope = oracle(wide, labels)
    assert loss.item() == pytest.approx(float(nats.sum()), rel=1e-6)
    assert near(W.grad.t(), slope, close)
    # G·W sums over the words: its error is relative to the largest term.
    terms = (slope[:, :, None] * wide.t()[None]).abs().amax(1)
    error = (hidden.grad.double() - slope @ wide.t()).abs()
    assert bool((error <= 3 * close * terms).all())
    assert bool((hidden.grad.abs().sum(1) > 0).all())


def test_one_sure_token_alone_has_a_loss():
    """Where nothing else is in the sum, what torch's own cross-entropy loses is seen."""
    logits = torch.tensor([[17.0, 0.0, -1.0]], requires_grad=True)
    theirs = torch.nn.functional.cross_entropy(logits, torch.tensor([0]))
    assert theirs.item() == 0.0
    assert torch.autograd.grad(theirs, logits)[0][0, 0] == 0.0
    wanted = float(np.log1p(np.exp(-17.0) + np.exp(-18.0)))
    assert label_loss(logits, torch.tensor([0])).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nats_of_rows(dtype, monkeypatch):
    """What evaluation reports of rows: small nats are not rounded to zero either."""
    wide, labels = logits_and_labels()
    log_p = torch.log_softmax(wide.to(dtype), 1)
    nats, _ = oracle(wide, labels)
    assert near(label_nats(log_p, labels), nats, 1e-5)
    ids = torch.cat([torch.tensor([0]), labels]).numpy().astype(np.int32)
    weight = np.ones(len(ids), np.uint8)
    weight[0] = 0
    table = TokenTable.build([Encoded(ids, weight, "one")])
    part = slice(0, len(labels))
    monkeypatch.setattr(likelihood, "log_probs_of", lambda model: lambda b: iter([(part, log_p)]))
    found, counts = likelihood.row_losses(SimpleNamespace(device="cpu"), table, 64)
    assert counts.tolist() == [len(labels)]
    assert found[0] == pytest.approx(float(nats.sum()), rel=1e-6)


def test_no_loss_of_tokens_is_formed_elsewhere():
    home = Path(lorakit.__file__).parent
    own = home / "kernels" / "head.py"
    written = [p for p in home.rglob("*.py") if p != own and "cross_entropy(" in p.read_text()]
    assert written == []
