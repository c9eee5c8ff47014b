"""Every kind of softmax attention: packed and in steps of many sequences, against each row alone."""

import pytest
import torch
from transformers import masking_utils

from families import ATTENTION_KINDS, VOCABULARY, tiny
from lorakit.errors import ModelError
from lorakit.execution.runnable import Packed, Runnable
from lorakit.execution.spans import CAUSAL, Span, read_span
from lorakit.execution.stepping import OwnBlocks, open_blocks
from lorakit.execution.steps import Place, plan_step
from lorakit.kernels.slot_plan import BatchPlan
from lorakit.lora import LoraSpec, attach, lora_layers

LENGTHS = (9, 50, 1, 23, 37)
CPU = torch.device("cpu")


def ids_of(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(5, VOCABULARY, (sum(lengths),), generator=generator).split(lengths)


def adapted(family):
    """With pairs on the linear layers, B not zero."""
    model = attach(tiny(family), LoraSpec(rank=1))
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(model).values():
        layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) / 10)
    return model


def nll(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum")


@pytest.mark.parametrize("family", ATTENTION_KINDS)
def test_packed_loss_and_gradients_are_those_of_each_row_alone(family):
    model, rows = adapted(family), ids_of()
    pairs = [p for p in model.parameters() if p.requires_grad]
    alone = sum(nll(model(row[None], use_cache=False).logits[0], row) for row in rows)
    wanted = torch.autograd.grad(alone, pairs, allow_unused=True)
    runnable = Runnable(model)
    assert runnable.packs
    places = torch.cat([torch.arange(n) for n in LENGTHS])
    packed = Packed(torch.cat(rows), places, LENGTHS)
    logits = runnable.logits(packed, torch.arange(sum(LENGTHS)), training=False)
    loss = sum(nll(part, row) for part, row in zip(logits.split(LENGTHS), rows, strict=True))
    assert abs(float((loss - alone).detach())) < 1e-5 * float(alone.detach())
    gradients = torch.autograd.grad(loss, pairs, allow_unused=True)
    for got, want in zip(gradients, wanted, strict=True):
        assert (got is None) == (want is None)  # experts that no token takes
        assert want is None or (got - want).norm() <= 1e-4 * want.norm()


@torch.no_grad()
@pytest.mark.parametrize("family", ATTENTION_KINDS)
def test_steps_of_many_sequences_are_each_alone(family):
    """Prompts in pieces and whole, and single tokens, past every window and chunk."""
    model, lengths = tiny(family), (40, 11, 28, 6)
    rows = ids_of(lengths)
    alone = [model(row[None], use_cache=False).logits[0] for row in rows]
    blocks, layers = open_blocks(model)
    assert isinstance(blocks, OwnBlocks)
    size = 64
    caches = [torch.zeros(4 * size, 2, x.key_heads, x.cell_width) for x in layers]
    draws, past = torch.Generator().manual_seed(7), [0] * len(rows)
    while any(p < n for p, n in zip(past, lengths, strict=True)):
        places, ids, ends = [], [], []
        for i, row in enumerate(rows):
            count = int(torch.randint(0, 9, (1,), generator=draws))
            count = min(1 if count > 5 else count, lengths[i] - past[i])
            if count:
                places.append(Place(i * size, size, past[i], count))
                ids.append(row[past[i] : past[i] + count])
                past[i] += count
                ends.append((i, sum(map(len, ids)) - 1))
        if not places:
            continue
        step, keep_L = plan_step(places, CPU), torch.tensor([end for _, end in ends])
        row_T = torch.cat(ids)
        logits = blocks.logits(row_T, step, keep_L, caches, BatchPlan(len(row_T), (), frozenset()))
        for (i, _), got in zip(ends, logits, strict=True):
            want = alone[i][past[i] - 1]
            assert (got - want).abs().max() < 1e-4 * want.abs().max(), (i, past[i])


def causal_and(other):
    return masking_utils.and_masks(other, masking_utils.causal_mask_function)


@pytest.mark.parametrize(
    ("function", "span"),
    [
        (masking_utils.causal_mask_function, CAUSAL),
        (masking_utils.sliding_window_causal_mask_function(1), Span(window=1)),
        (masking_utils.sliding_window_causal_mask_function(700), Span(window=700)),
        (masking_utils.sliding_window_causal_mask_function(9000), CAUSAL),
        (masking_utils.chunked_causal_mask_function(6, torch.zeros(1, dtype=int)), Span(chunk=6)),
    ],
)
def test_windows_and_chunks_are_read_off_mask_functions(function, span):
    assert read_span(function, 4096, CPU) == span


def test_other_mask_functions_are_kept_as_they_are():
    """Every third token and the last four: no window and no chunk says that."""

    def strided(batch, head, query, key):
        return (key % 3 == 0) | (query - key < 4)

    function = causal_and(strided)
    span = read_span(function, 512, CPU)
    assert span == Span(function=function)
    place = torch.arange(20)
    seen = span.seen(place[:, None], place)
    for i in range(20):
        assert seen[i].tolist() == [j <= i and (j % 3 == 0 or i - j < 4) for j in range(20)]


def test_masks_that_show_later_tokens_are_refused():
    for function in (
        masking_utils.bidirectional_mask_function,
        masking_utils.sliding_window_bidirectional_mask_function(8),
    ):
        with pytest.raises(ModelError, match="later tokens"):
            read_span(function, 512, CPU)
    table = torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(ModelError, match="more than places"):
        read_span(causal_and(masking_utils.padding_mask_function(table)), 512, CPU)


@torch.no_grad()
def test_a_mask_that_no_window_says_is_packed_and_served(monkeypatch):
    """A family whose masks are built by a function of its own: strided attention."""
    real = masking_utils.sliding_window_causal_mask_function

    def strided(window):
        def other(batch, head, query, key):
            return (key % 4 == 0) | (query - key < 3)

        return causal_and(other) if window == 5 else real(window)

    monkeypatch.setattr(masking_utils, "sliding_window_causal_mask_function", strided)
    test_steps_of_many_sequences_are_each_alone("qwen2_moe")
    model, rows = tiny("qwen2_moe"), ids_of()
    alone = torch.cat([model(row[None], use_cache=False).logits[0] for row in rows])
    places = torch.cat([torch.arange(n) for n in LENGTHS])
    runnable = Runnable(model)
    assert runnable.packs
    packed = Packed(torch.cat(rows), places, LENGTHS)
    logits = runnable.logits(packed, torch.arange(sum(LENGTHS)))
    assert (logits - alone).abs().max() < 2e-5 * alone.abs().max()
