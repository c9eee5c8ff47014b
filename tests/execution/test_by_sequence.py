"""Recurrences, convolutions and attentions of a model's own in packed rows: equal to each row alone.

The oracle is transformers' own code on each sequence alone, with the pairs' s·B·A beside it.
"""

import copy

import pytest
import torch
from transformers import AutoConfig

from families import tiny
from lorakit.execution.lengths import context_length
from lorakit.execution.runnable import Packed, Runnable
from lorakit.lora import LoraSpec, attach, lora_layers
from mixing_families import KINDS, tiny_kind

LENGTHS = (9, 37, 23, 24, 1)


def adapted(family):
    model = tiny_kind(family)
    attach(model, LoraSpec(rank=2))
    generator = torch.Generator().manual_seed(5)
    for layer in lora_layers(model).values():
        layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) / 4)
    return model


def packed_rows():
    ids_T = torch.randint(5, 300, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    return Packed(ids_T, torch.cat([torch.arange(n) for n in LENGTHS]), LENGTHS)


def loss_and_gradients(model, logits_of):
    """A loss in which every token has a weight of its own, and what A and B get."""
    model.zero_grad()
    weights = torch.randn(sum(LENGTHS), 300, generator=torch.Generator().manual_seed(2))
    loss = (logits_of().log_softmax(-1) * weights).sum() / len(weights)
    loss.backward()
    gradients = {
        f"{path}.{name}": tensor.grad.clone()
        for path, layer in lora_layers(model).items()
        for name, tensor in (("A", layer.A), ("B", layer.B))
        if tensor.grad is not None
    }
    return loss.detach(), gradients


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("family", KINDS)
def test_packed_rows_have_the_loss_and_gradients_of_each_alone(family):
    model, rows = adapted(family), packed_rows()
    loss, gradients = loss_and_gradients(
        model,
        lambda: torch.cat(
            [model(ids[None], use_cache=False).logits[0] for ids in rows.ids_T.split(LENGTHS)]
        ),
    )
    runnable = Runnable(model)
    assert runnable.packs
    assert {path.rsplit(".", 1)[1] for path in runnable.by_sequence} == KINDS[family][1]
    every = torch.arange(sum(LENGTHS))
    for recompute in (False, True) if model.supports_gradient_checkpointing else (False,):
        own, mine = loss_and_gradients(
            model,
            lambda again=recompute: runnable.logits(rows, every, training=True, recompute=again),
        )
        runnable.rest()
        assert (own - loss).abs() < 1e-4 * loss.abs()
        assert mine.keys() == gradients.keys()
        for name, gradient in gradients.items():
            apart = (mine[name] - gradient).abs().max()
            assert apart <= 1e-3 * gradient.abs().max() + 1e-7, (name, recompute)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (("llama", {"max_position_embeddings": 64}), 64),
        (("gpt2", {"n_positions": 48}), 48),
        (("mpt", {"max_seq_len": 96}), 96),
        (("bloom", {}), None),
        (("mamba", {}), None),
        (("xlnet", {}), None),
    ],
)
def test_the_longest_sequence_is_known_by_the_names_it_has(fields, expected):
    family, given = fields
    assert context_length(AutoConfig.for_model(family, **given)) == expected


@torch.no_grad()
@pytest.mark.parametrize("family", ["xlstm", "rwkv", "bamba"])
def test_some_places_are_those_of_all(family):
    """Some models take `logits_to_keep`, some do not, and xLSTM takes any argument and does nothing."""
    runnable, rows = Runnable(tiny_kind(family)), packed_rows()
    some = torch.tensor([3, 20, 50])
    every = runnable.logits(rows, torch.arange(sum(LENGTHS)))
    torch.testing.assert_close(runnable.logits(rows, some), every[some], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["mamba", "bamba", "recurrent_gemma", "llama"])
def test_the_loss_of_a_model_in_bfloat16(family):
    """Mamba keeps its residual in float32, and hands its head what the head takes."""
    wide = (tiny_kind if family in KINDS else tiny)(family)
    model = copy.deepcopy(wide).bfloat16()
    rows = packed_rows()
    parts = rows.ids_T.split(LENGTHS)
    exact, own = (
        torch.cat([each(ids[None], use_cache=False).logits[0] for ids in parts]).float()
        for each in (wide, model)
    )
    attach(model, LoraSpec(rank=2))
    runnable = Runnable(model)
    hidden = runnable.hidden(rows)
    assert hidden.dtype == torch.bfloat16
    if (head := runnable.head) is not None:
        off = (hidden @ head.weight.T - exact).norm()
        assert off < 1.5 * (own - exact).norm()


def test_a_row_that_xlstm_would_read_in_pieces_is_read_as_one():
    """Out of training it cuts what is longer than `max_inference_chunksize`: the row, not a sequence."""
    limit = 60
    assert max(LENGTHS) < limit < sum(LENGTHS)
    model = tiny_kind("xlstm")
    model.config.max_inference_chunksize = limit
    rows, every = packed_rows(), torch.arange(sum(LENGTHS))
    with torch.no_grad():
        alone = torch.cat(
            [model(ids[None], use_cache=False).logits[0] for ids in rows.ids_T.split(LENGTHS)]
        )
        runnable = Runnable(model)
        assert runnable.packs
        assert (runnable.logits(rows, every) - alone).abs().max() < 1e-3
        own = [model.base_model(ids[None], use_cache=False) for ids in rows.ids_T.split(LENGTHS)]
        hidden = torch.cat([each.last_hidden_state[0] for each in own])
        assert (runnable.hidden(rows) - hidden).abs().max() < 1e-3
