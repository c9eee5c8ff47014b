"""The three losses against each other and against a plain one, and the chunked head alone."""

import pytest
import torch

from families import BY_SEQUENCE, FAMILIES, NOT_PACKABLE, tiny
from lorakit.data.batches import micro_batches
from lorakit.data.table import Encoded, TokenTable
from lorakit.kernels import head
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.training import loss as losses
from lorakit.training.loss import CausalLoss, held_out_loss


def rows(lengths=(3, 9, 4, 14, 6)) -> TokenTable:
    generator = torch.Generator().manual_seed(7)
    made = []
    for i, length in enumerate(lengths):
        ids = torch.randint(5, 250, (length,), generator=generator).int().numpy()
        weight = (torch.arange(length) > length // 3).to(torch.uint8).numpy()
        made.append(Encoded(ids, weight, f"rows:{i + 1}"))
    return TokenTable.build(made)


def adapted(family: str, **spec):
    """Pairs with B away from zero, so that gradients of A are not zero."""
    model = attach(tiny(family), LoraSpec(rank=2, **spec), seed=0)
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        layer.B.data.normal_(0.0, 0.05, generator=generator)
    return model


def plain_loss(model, table: TokenTable) -> torch.Tensor:
    """One row at a time through the model's own forward, loss by its definition."""
    total = torch.zeros(())
    for row in table:
        ids = torch.tensor(row.ids).long()
        log_p = model(ids[None], use_cache=False).logits[0].log_softmax(-1)
        for t in range(1, len(ids)):
            if row.weight[t]:
                total = total - log_p[t - 1, ids[t]]
    return total


def gradients(model, value: torch.Tensor) -> torch.Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters)])


@pytest.mark.parametrize("family", [*FAMILIES, *BY_SEQUENCE, *NOT_PACKABLE])
def test_the_chosen_loss_equals_the_plain_one(family):
    if family == "mamba":
        model = attach(tiny(family), LoraSpec(rank=2, targets=("in_proj",)), seed=0)
    else:
        model = adapted(family)
    table = rows()
    (batch,) = micro_batches(table, range(len(table)), 1000)
    wanted = plain_loss(model, table)
    got, count = CausalLoss(model)(batch)
    found = gradients(model, got)
    assert count == sum(int(row.weight[1:].sum()) for row in table)
    torch.testing.assert_close(got, wanted, rtol=2e-5, atol=1e-4)
    expected = gradients(model, wanted)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize(
    ("family", "way"),
    [
        *(("llama", losses.chunked_loss), ("gpt2", losses.chunked_loss)),
        *(("gemma2", losses.packed_loss), ("bloom", losses.chunked_loss)),
        ("xlm", losses.unpacked_loss),
    ],
)
def test_each_family_takes_the_fastest_loss_that_is_right(monkeypatch, family, way):
    taken, table = [], rows()
    (batch,) = micro_batches(table, range(len(table)), 1000)
    for name in ("chunked_loss", "packed_loss", "unpacked_loss"):
        whole = getattr(losses, name)
        monkeypatch.setattr(
            losses, name, lambda *a, whole=whole, **k: (taken.append(whole), whole(*a, **k))[1]
        )
    CausalLoss(tiny(family))(batch)
    assert taken == [way]


def test_a_rows_gradient_does_not_depend_on_its_company():
    model, table = adapted("llama"), rows()
    loss, alone = CausalLoss(model), []
    for i in range(len(table)):
        (batch,) = micro_batches(table, [i], 1000)
        alone.append(gradients(model, loss(batch)[0]))
    for rows_of_batch in ([0, 3], [3, 1, 4], [0, 1, 2, 3, 4]):
        (batch,) = micro_batches(table, rows_of_batch, 1000)
        together = gradients(model, loss(batch)[0])
        wanted = sum(alone[i] for i in rows_of_batch)
        assert float((together - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("chunk", [2, 3, 100])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_chunked_head_by_finite_differences(chunk, bias, padded, monkeypatch):
    monkeypatch.setattr(head, "HEAD_CHUNK", chunk)
    monkeypatch.setattr(head, "SOFTMAX_ROWS", 2)
    monkeypatch.setattr(head, "compiles_shapes", lambda dtype, device: padded)
    generator = torch.Generator().manual_seed(0)
    hidden, weight, offset = (
        torch.randn(size, dtype=torch.float64, generator=generator, requires_grad=True)
        for size in ((7, 4), (11, 4), (11,))
    )
    labels = torch.randint(0, 11, (7,), generator=generator)

    def summed(h, w, b):
        return head.chunked_head_loss(h, w, b if bias else None, labels)

    assert torch.autograd.gradcheck(summed, (hidden, weight, offset))


def test_chunked_head_in_bfloat16_stays_near_float32():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 16, generator=generator)
    weight = torch.randn(300, 16, generator=generator) * 0.3
    labels = torch.randint(0, 300, (40,), generator=generator)
    half = hidden.bfloat16().requires_grad_()
    got = head.chunked_head_loss(half, weight.bfloat16(), None, labels)
    got.backward()
    exact = half.detach().float().requires_grad_()
    logits = exact @ weight.bfloat16().float().T
    wanted = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    wanted.backward()
    # bfloat16 keeps 8 bits: relative error of a logit is up to 2^-9.
    assert got.item() == pytest.approx(wanted.item(), rel=5e-3)
    assert float((half.grad.float() - exact.grad).norm() / exact.grad.norm()) < 1e-2


def test_a_frozen_head_gets_no_gradient():
    weight = torch.randn(11, 4)
    hidden = torch.randn(3, 4, requires_grad=True)
    head.chunked_head_loss(hidden, weight, None, torch.tensor([1, 2, 3])).backward()
    assert weight.grad is None


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_held_out_loss_is_the_mean_over_tokens_in_evaluation_mode(dropout):
    model, table = adapted("llama", dropout=dropout).train(), rows()
    batches = micro_batches(table, range(len(table)), 12)
    assert len(batches) > 2
    value = held_out_loss(batches, CausalLoss(model))
    tokens = sum(int(row.weight[1:].sum()) for row in table)
    assert value == pytest.approx(plain_loss(model.eval(), table).item() / tokens, rel=1e-4)
