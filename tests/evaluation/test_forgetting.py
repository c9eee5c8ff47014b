"""Row losses and KL from the base, against plain loops through the model's own forward."""

import copy

import numpy as np
import pytest
import torch

from families import tiny
from lorakit.data.table import Encoded, TokenTable
from lorakit.errors import OutputError
from lorakit.evaluation.forgetting import coarse_kl, forgetting, load_reference, reference
from lorakit.evaluation.likelihood import per_token, row_losses

FAMILIES = ["llama", "gemma2", "xlm"]  # packed with a plain head, with soft caps, padded


def rows() -> TokenTable:
    generator = torch.Generator().manual_seed(3)
    made = []
    for i, length in enumerate((9, 4, 13, 6, 4)):
        ids = torch.randint(5, 300, (length,), generator=generator).int().numpy()
        weight = (np.arange(length) > 1 + i % 2).astype(np.uint8)
        made.append(Encoded(ids, weight, f"rows:{i + 1}"))
    return TokenTable.build(made)


@torch.no_grad()
def distributions(model, row):
    """log p of every word at each supervised token of a row, and the labels."""
    ids = torch.from_numpy(row.ids.astype(np.int64))
    at = torch.from_numpy(row.weight[1:].astype(bool))
    log_p = model(input_ids=ids[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
    return log_p[at], ids[1:][at]


def moved(model):
    """The same model a little further on."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return other


@pytest.mark.parametrize("family", FAMILIES)
def test_row_losses_are_those_of_a_plain_loop(family):
    model, table = tiny(family), rows()
    nats, tokens = row_losses(model, table, batch_tokens=16)
    for i, row in enumerate(table):
        log_p, labels = distributions(model, row)
        assert nats[i] == pytest.approx(-float(log_p.gather(1, labels[:, None]).sum()), rel=1e-4)
        assert tokens[i] == len(labels)
    assert per_token(nats, tokens) == pytest.approx(nats.sum() / tokens.sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_kl_and_loss_with_all_words_kept_are_exact(family):
    base = tiny(family)
    tuned, table = moved(base), rows()
    kept = reference(base, table, 16, kept=300)
    assert kept.mass == pytest.approx(1.0, abs=1e-4)
    found = forgetting(tuned, kept, 1000)  # in other batches than the reference
    for i, row in enumerate(table):
        log_p, labels = distributions(base, row)
        log_q, _ = distributions(tuned, row)
        exact = float((log_p.exp() * (log_p - log_q)).sum())
        assert exact > 1e-3
        assert found.kl_S[i] == pytest.approx(exact, rel=2e-3, abs=1e-4)
        nats = -float(log_q.gather(1, labels[:, None]).sum())
        assert found.loss_S[i] == pytest.approx(nats, rel=1e-4)


def test_a_base_stands_nowhere_but_at_itself():
    model, table = tiny("llama"), rows()
    found = forgetting(model, reference(model, table, 64, kept=20), 64)
    assert found.kl_S == pytest.approx(np.zeros(5), abs=1e-5)


def test_fewer_words_never_give_more_and_give_nearly_as_much():
    base = tiny("llama")
    tuned, table = moved(base), rows()
    kl = []
    for words in (5, 50, 300):
        kept = reference(base, table, 64, kept=words)
        kl.append(forgetting(tuned, kept, 64).kl_S.sum())
    assert kl[0] <= kl[1] <= kl[2] + 1e-6
    assert kl[1] > 0.5 * kl[2]


def test_coarse_kl_by_hand():
    # p = (.5, .25 | .25), q = (.25, .25 | .5): .5 ln 2 + .25 ln .5 = .25 ln 2.
    p, q = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0.25, 0.25]]).log()
    assert float(coarse_kl(p, q)) == pytest.approx(0.25 * np.log(2), rel=1e-6)


def test_a_reference_comes_back_from_its_file(tmp_path):
    model, table = tiny("llama"), rows()
    made = reference(model, table, 64, kept=20)
    made.save(tmp_path / "general.npz")
    back = load_reference(tmp_path / "general.npz")
    assert torch.equal(back.words_NK, made.words_NK)
    assert torch.equal(back.log_p_NK, made.log_p_NK)
    assert [r.ids.tolist() for r in back.table] == [r.ids.tolist() for r in table]
    assert back.mass == pytest.approx(made.mass)


def test_a_damaged_reference_is_named(tmp_path):
    (tmp_path / "general.npz").write_bytes(b"PK no")
    with pytest.raises(OutputError, match=r"general\.npz is damaged"):
        load_reference(tmp_path / "general.npz")
