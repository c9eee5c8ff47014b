"""Activated LoRA: the pair acts from the last invocation on. The oracle is a forward with the mask written out."""

import copy

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from families import tiny
from lorakit.errors import ConfigError, ModelError, TargetError
from lorakit.execution.generate import generate
from lorakit.execution.runnable import Packed, Runnable
from lorakit.lora import LoraSpec, attach, detach, lora_layers, plan
from lorakit.lora.acting import Acting
from lorakit.lora.invocation import with_tokens
from lorakit.lora.jobs import Jobs
from lorakit.lora.variant import Capability
from lorakit.merging.merge import merged_model

INVOCATION = (5, 6)
# In the middle, several times, at the very end, nowhere, and cut in two by the next row's beginning.
ROWS = (
    (9, 8, 7, 5, 6, 11, 12, 13, 14),
    (5, 6, 9, 5, 6, 3, 4),
    (9, 8, 7, 3, 5, 6),
    (9, 8, 5, 7, 6, 3, 4),
    (40, 41, 5),
    (6, 42, 43),
)
STARTS = (3, 3, 4, None, None, None)


def spec(**changes):
    return LoraSpec(**{"rank": 3, "alpha": 5.0, "alora": INVOCATION, **changes})


def trained(model, of):
    attach(model, of, seed=1)
    generator = torch.Generator().manual_seed(2)
    for layer in lora_layers(model).values():
        layer.B.data.normal_(std=0.2, generator=generator)
    return model


def masked(model, layers, row, start):
    """Logits of one row, the low-rank path written out and multiplied by its mask."""
    first = len(row) if start is None else start
    on = (torch.arange(len(row)) >= first)[:, None]
    hooks = []
    for path, layer in layers.items():

        def add(module, inputs, y, layer=layer):
            low = inputs[0] @ layer.A.to(inputs[0]).t() @ layer.B.to(inputs[0]).t()
            return y + layer.scale * low * on

        hooks.append(model.get_submodule(path).register_forward_hook(add))
    try:
        return model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()


def packed(rows=ROWS):
    lengths = [len(row) for row in rows]
    ids = torch.tensor([token for row in rows for token in row])
    return Packed(ids, torch.cat([torch.arange(n) for n in lengths]), lengths)


# Some of a model's own code computes in float32 whatever it is kept in: a norm of Gemma 2.
@pytest.mark.parametrize(
    ("family", "close"),
    [("llama", 1e-10), ("qwen3", 1e-10), ("gemma2", 1e-5), ("gpt2", 1e-10), ("gpt_neox", 1e-10)],
)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_packed_rows_and_gradients_are_those_of_an_explicit_mask(family, close, recompute):
    base = tiny(family).double()
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # GPT-2's own
    if family == "gpt2":
        base.config.attn_pdrop = 0.0
    model = trained(copy.deepcopy(base), spec())
    layers = lora_layers(model)
    every = torch.arange(sum(map(len, ROWS)))
    wanted = torch.cat(
        [masked(base, layers, row, at) for row, at in zip(ROWS, STARTS, strict=True)]
    )
    wanted.sin().sum().backward()
    gradients = {path: (x.A.grad.clone(), x.B.grad.clone()) for path, x in layers.items()}
    for tensor in (t for x in layers.values() for t in (x.A, x.B)):
        tensor.grad = None

    runnable = Runnable(model)
    assert runnable.packs
    logits = runnable.logits(packed(), every, training=recompute, recompute=recompute)
    torch.testing.assert_close(logits, wanted.detach(), rtol=0, atol=close)
    logits.sin().sum().backward()
    for path, layer in layers.items():
        for found, right in zip((layer.A.grad, layer.B.grad), gradients[path], strict=True):
            torch.testing.assert_close(found, right, rtol=0, atol=100 * close)


@pytest.mark.parametrize("recompute", [False, True])
def test_fused_blocks_are_those_of_an_explicit_mask(recompute):
    base = tiny("llama").double()
    model = trained(copy.deepcopy(base), spec())
    layers, runnable = lora_layers(model), Runnable(model)
    assert len(runnable.fused_blocks) == 2
    wanted = torch.cat(
        [masked(base, layers, row, at) for row, at in zip(ROWS, STARTS, strict=True)]
    )
    wanted.sin().sum().backward()
    gradients = [(x.A.grad.clone(), x.B.grad.clone()) for x in layers.values()]
    for tensor in (t for x in layers.values() for t in (x.A, x.B)):
        tensor.grad = None
    hidden = runnable.hidden(packed(), training=True, recompute=recompute)
    # The model's own norms compute in float32, the fused ones do not.
    logits = base.lm_head(hidden)
    torch.testing.assert_close(logits, wanted.detach(), rtol=0, atol=1e-5)
    logits.sin().sum().backward()
    for layer, pair in zip(layers.values(), gradients, strict=True):
        for found, right in zip((layer.A.grad, layer.B.grad), pair, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_nothing_changes_at_the_start_and_plain_lora_differs_later():
    base = tiny("llama")
    ids = torch.tensor([ROWS[0]])
    fresh = attach(copy.deepcopy(base), spec())
    assert torch.equal(fresh(ids).logits, base(ids).logits)
    activated, plain = (trained(copy.deepcopy(base), x) for x in (spec(), spec(alora=())))
    assert torch.equal(activated(ids).logits[0, :3], base(ids).logits[0, :3])
    assert (activated(ids).logits - plain(ids).logits)[0, 3:].abs().max() > 1e-3


def test_padding_on_either_side_changes_nothing():
    model = trained(tiny("llama"), spec())
    alone = [model(torch.tensor([row])).logits[0] for row in ROWS[:2]]
    long, short = ROWS[:2]
    for left in (True, False):
        filled = [2] * (len(long) - len(short))  # the padding token of these models
        row = [*filled, *short] if left else [*short, *filled]
        mask = torch.ones(2, len(long), dtype=torch.long)
        mask[1, : len(filled)] = int(not left)
        mask[1, len(short) :] = int(left)
        if left:
            mask[1] = torch.tensor([0] * len(filled) + [1] * len(short))
        logits = model(torch.tensor([long, row]), attention_mask=mask).logits
        own = logits[1, len(filled) :] if left else logits[1, : len(short)]
        torch.testing.assert_close(logits[0], alone[0], rtol=0, atol=2e-5)
        torch.testing.assert_close(own, alone[1], rtol=0, atol=2e-5)


def test_padding_is_part_of_no_invocation():
    model = trained(tiny("llama"), spec(alora=(2, 9)))
    base = detach(copy.deepcopy(model))
    ids, mask = torch.tensor([[2, 9, 8, 7]]), torch.tensor([[0, 1, 1, 1]])
    logits = model(ids, attention_mask=mask).logits
    assert torch.equal(logits, base(ids, attention_mask=mask).logits)


@pytest.mark.parametrize("own_cache", [True, False])
def test_steps_with_a_cache_are_the_whole_row(own_cache):
    model = trained(tiny("llama"), spec())
    ids = torch.tensor([ROWS[0], (*ROWS[3], 9, 9)])
    whole = model(ids, use_cache=False).logits
    cache = DynamicCache() if own_cache else None
    first = model(ids[:, :6], cache=cache, use_cache=True)
    parts = [first.logits]
    for at in range(6, 9):
        parts.append(model(ids[:, at : at + 1], cache=first.cache).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=2e-5)


def test_an_invocation_that_is_answered_changes_nothing_that_was_decided():
    """As in peft: where the adapter acts is decided by the prompt."""
    model = trained(tiny("llama"), spec())
    cache = DynamicCache()
    silent = model(torch.tensor([ROWS[3]]), cache=cache, use_cache=True)
    assert silent is not None
    said = model(torch.tensor([[5, 6]]), cache=cache).logits
    base = detach(copy.deepcopy(model))
    expected = base(torch.tensor([[*ROWS[3], 5, 6]])).logits[:, -2:]
    torch.testing.assert_close(said, expected, rtol=0, atol=2e-5)


def test_a_cache_of_unknown_beginning_is_an_error():
    model = trained(tiny("llama"), spec())
    cache = tiny("llama")(torch.tensor([ROWS[0]])).cache
    with pytest.raises(
        ModelError, match="a cache whose beginning an activated adapter has not seen"
    ):
        model(torch.tensor([[3]]), cache=cache)


def test_what_sees_no_tokens_is_an_error():
    model = trained(tiny("llama"), spec())
    with pytest.raises(ModelError, match="called without input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 48))
    layer = next(iter(lora_layers(model).values()))
    with pytest.raises(ModelError, match="call the whole model with input_ids"):
        layer(torch.zeros(1, 3, 48))


def test_detaching_leaves_no_hook():
    base = tiny("llama")
    model = detach(attach(copy.deepcopy(base), spec()))
    assert not model.base_model._forward_pre_hooks
    assert not model.base_model._forward_hooks
    embeddings = torch.ones(1, 2, 48)
    assert torch.equal(
        model(inputs_embeds=embeddings).logits, base(inputs_embeds=embeddings).logits
    )


def test_an_invocation_over_two_rows_is_none():
    acting = Acting((5, 6))
    rows = packed()
    on = acting.in_packed(rows.ids_T, rows.lengths_S).tolist()
    expected = [
        start is not None and at >= start
        for row, start in zip(ROWS, STARTS, strict=True)
        for at in range(len(row))
    ]
    assert on == expected
    padded = torch.cat([rows.ids_T, torch.tensor([5, 6])])
    assert acting.in_packed(padded, rows.lengths_S).tolist() == [*expected, False, False]


@pytest.mark.parametrize("length", [1, 3])
def test_packed_places_are_those_of_a_search_row_by_row(length):
    generator = torch.Generator().manual_seed(length)
    for _ in range(200):
        lengths = torch.randint(1, 7, (4,), generator=generator).tolist()
        ids = torch.randint(2, (sum(lengths),), generator=generator)
        wanted = torch.randint(2, (length,), generator=generator).tolist()
        expected, first = [], 0
        for n in lengths:
            row = ids[first : first + n].tolist()
            starts = [i for i in range(n - length + 1) if row[i : i + length] == wanted]
            expected += [bool(starts) and i >= starts[-1] for i in range(n)]
            first += n
        assert Acting(wanted).in_packed(ids, lengths).tolist() == expected


def test_a_text_has_to_become_tokens_first():
    with pytest.raises(TargetError, match="only a tokenizer says which tokens"):
        attach(tiny("llama"), spec(alora="call"))

    class Tokenizer:
        def __len__(self):
            return 9

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [ord(c) - 97 for c in text]}

    assert with_tokens(spec(alora="cab"), Tokenizer()).alora == (2, 0, 1)
    with pytest.raises(ConfigError, match="names the token 70; the tokenizer has 9"):
        with_tokens(spec(alora="70"), Tokenizer())
    with pytest.raises(ConfigError, match="text or a list of token ids"):
        spec(alora=[1, -2])


@pytest.mark.parametrize("targets", [("lm_head",), ("embed_tokens",)])
def test_only_layers_that_see_every_token_are_adapted(targets):
    with pytest.raises(TargetError, match="acts on linear layers of the blocks"):
        attach(tiny("llama"), spec(targets=targets))


def test_what_would_act_on_all_tokens_is_refused_by_capability():
    model = trained(tiny("llama"), spec())
    with pytest.raises(TargetError, match="activated LoRA cannot be merged into the weight"):
        merged_model(model)
    base = tiny("llama")
    with pytest.raises(TargetError, match="activated LoRA cannot be trained beside other adapters"):
        Jobs(base, [plan(base, spec())], [0])
    lacking = {Capability.MERGE, Capability.MERGE_ROWS, Capability.SUM, Capability.VLLM}
    assert not lacking & spec().variant.capabilities
    assert spec(rslora=True).variant.scale(6.0, 9) == 2.0


def test_generation_says_which_prompts_it_does_not_act_on(caplog):
    model = trained(tiny("llama"), spec())

    class Tokenizer:
        pad_token_id, bos_token_id, eos_token_id, chat_template = 2, 0, 1, None

        def decode(self, ids, **_):
            return " ".join(map(str, ids))

        def get_vocab(self):
            return {}

    found = generate(model, Tokenizer(), ROWS[:4], max_new_tokens=3)
    assert len(found) == 4
    assert "acts from '5 6' on, which 1 of 4 prompts do not hold" in caplog.text


def test_a_dropped_input_is_masked_too():
    model = trained(tiny("llama"), spec(dropout=0.5)).train()
    base = detach(copy.deepcopy(model)).train()
    ids = torch.tensor([ROWS[3]])
    torch.testing.assert_close(model(ids).logits, base(ids).logits)
