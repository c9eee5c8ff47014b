"""Packed equals alone equals padded; attention against a float64 loop with a mask."""

import math

import pytest
import torch

from families import BY_SEQUENCE, FAMILIES, NOT_PACKABLE, VOCABULARY, tiny
from lorakit.errors import ModelError
from lorakit.execution.attention import switch
from lorakit.execution.runnable import Packed, Runnable
from lorakit.kernels import attention as kernels
from lorakit.kernels import attention_blocked as blocked
from lorakit.kernels.attention import attend
from lorakit.kernels.layout import layout, rounded

LENGTHS = (9, 1, 23, 12)


def packed(lengths=LENGTHS):
    ids, positions, _ = rows(lengths)
    return Packed(ids, positions, lengths)


def rows(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (sum(lengths),), generator=generator)
    positions = torch.cat([torch.arange(n) for n in lengths])
    return ids, positions, torch.arange(sum(lengths))


@pytest.mark.parametrize("family", [*FAMILIES, *BY_SEQUENCE])
def test_packed_equals_alone_equals_padded(family):
    model = tiny(family)
    ids, _, every = rows()
    with torch.no_grad():
        alone = torch.cat([model(part[None]).logits[0] for part in ids.split(LENGTHS)])
        runnable = Runnable(model)
        assert runnable.packs
        padded = runnable.unpacked_logits(packed(), every)
        logits = runnable.logits(packed(), every)
        some = runnable.logits(packed(), every[3::5])
        hidden = runnable.hidden(packed())
        inside = model(ids[None, :9]).logits[0]  # as loaded, for everybody else
    scale = alone.abs().max()
    assert (logits - alone).abs().max() < 2e-5 * scale
    assert (padded - alone).abs().max() < 2e-5 * scale
    assert (some - alone[3::5]).abs().max() < 2e-5 * scale
    assert (inside - alone[:9]).abs().max() < 1e-6 * scale
    assert hidden.shape == (sum(LENGTHS), 48)


# The method's newer name is not in every transformers that lorakit allows.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_each_sequence_alone(family, checkpointing):
    model = tiny(family)
    ids, _, every = rows()
    loss = sum(model(part[None]).logits.sin().sum() for part in ids.split(LENGTHS))
    loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    runnable = Runnable(model)
    logits = runnable.logits(packed(), every, training=checkpointing, recompute=checkpointing)
    logits.sin().sum().backward()
    runnable.rest()
    assert not model.training
    assert not model.is_activation_checkpointing
    for name, parameter in model.named_parameters():
        scale = expected[name].abs().max().clamp_min(1e-3)
        assert (parameter.grad - expected[name]).abs().max() < 1e-4 * scale, name


@pytest.mark.parametrize("family", NOT_PACKABLE)
def test_models_that_cannot_be_packed_are_found_and_run_padded(family):
    model = tiny(family)
    before = model.config._attn_implementation
    runnable = Runnable(model)
    assert not runnable.packs
    assert model.config._attn_implementation == before
    ids, _, every = rows()
    with torch.no_grad():
        alone = torch.cat([model(part[None]).logits[0] for part in ids.split(LENGTHS)])
        padded = runnable.unpacked_logits(packed(), every)
    assert (padded - alone).abs().max() < 2e-5 * alone.abs().max()
    with pytest.raises(ModelError, match="cannot be packed"):
        runnable.hidden(packed())


@pytest.mark.parametrize(("family", "plain"), [("llama", True), ("gpt2", True), ("gemma2", False)])
def test_a_soft_cap_on_the_logits_is_seen(family, plain):
    assert (Runnable(tiny(family)).head is not None) is plain


def test_the_trials_leave_every_modules_mode():
    model = tiny("llama").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert Runnable(model).packs
    assert Runnable(model).head is not None
    assert Runnable(model).fused_blocks
    assert [module.training for module in model.modules()] == modes


def test_what_was_found_is_remembered(monkeypatch):
    model = tiny("llama")
    first = Runnable(model)
    assert first.packs
    assert first.fused_blocks
    monkeypatch.setattr("lorakit.execution.facts.same_answer", None)
    again = Runnable(model)
    assert again.packs
    assert again.fused_blocks == first.fused_blocks


@pytest.mark.parametrize(
    ("family", "loaded"),
    [(f, a) for f in ("llama", "gpt2", "qwen3") for a in ("eager", "sdpa")] + [("gemma2", "eager")],
)
def test_a_switched_model_attends_as_it_was_loaded_to_for_everybody_else(family, loaded):
    """Logits, masks of padding and the KV cache: the same bits as a model that was left alone."""
    left, switched = (tiny(family, attn_implementation=loaded) for _ in range(2))
    switch(switched)
    assert switched.config._attn_implementation == f"lorakit_{loaded}"
    ids = torch.randint(5, 200, (3, 11), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[0, :6] = mask[1, :2] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 2}
    with torch.no_grad():
        for given in ({}, {"attention_mask": mask}):
            assert torch.equal(left(ids, **given).logits, switched(ids, **given).logits)
        assert torch.equal(left.generate(ids, **settings), switched.generate(ids, **settings))


def test_wrong_lengths_are_named():
    ids, positions, _ = rows()
    with pytest.raises(ValueError, match="lengths sum to 44, but there are 45"):
        Runnable(tiny("llama")).hidden(Packed(ids, positions, (9, 1, 22, 12)))


def oracle(q, k, v, lengths, scale, window=None, softcap=None):
    """The formula, one sequence, one head and one query at a time."""
    out = torch.zeros_like(q)
    start = 0
    for n in lengths:
        for h in range(q.shape[1]):
            g = h // (q.shape[1] // k.shape[1])
            for i in range(n):
                first = 0 if window is None else max(0, i - window + 1)
                keys, values = (
                    k[start + first : start + i + 1, g],
                    v[start + first : start + i + 1, g],
                )
                s = scale * keys @ q[start + i, h]
                if softcap is not None:
                    s = softcap * torch.tanh(s / softcap)
                out[start + i, h] = torch.softmax(s, 0) @ values
        start += n
    return out


def qkv(total, heads=4, key_heads=2, width=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(total, h, width, generator=generator, dtype=dtype, requires_grad=True)
        for h in (heads, key_heads, key_heads)
    ]


@pytest.mark.parametrize("window", [None, 1, 4, 70])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("keep", [0, 128])
@pytest.mark.parametrize("block", [4, 64])
def test_blocked_attention_is_the_formula(monkeypatch, window, softcap, keep, block):
    monkeypatch.setattr(blocked, "KEEP", keep)
    monkeypatch.setattr(blocked, "BLOCK", block)
    lengths = (3, 17, 1, 16)
    q, k, v = qkv(sum(lengths))
    where = layout(lengths, q.device)
    ours = attend(q, k, v, where, scale=0.7, window=window, softcap=softcap)
    theirs = oracle(q, k, v, lengths, 0.7, window, softcap)
    weight = torch.randn(ours.shape, dtype=ours.dtype)
    ours_grad = torch.autograd.grad((ours * weight).sum(), (q, k, v))
    theirs_grad = torch.autograd.grad((theirs * weight).sum(), (q, k, v))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    for a, b in zip(ours_grad, theirs_grad, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_long_sequences_and_mixed_batches_are_the_formula(monkeypatch):
    monkeypatch.setattr(kernels, "LONG", 8)
    lengths = (3, 17, 5, 9)
    q, k, v = qkv(sum(lengths))
    ours = attend(q, k, v, layout(lengths, q.device), scale=0.7)
    theirs = oracle(q, k, v, lengths, 0.7)
    weight = torch.randn(ours.shape, dtype=ours.dtype)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((theirs * weight).sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck(softcap):
    lengths = (2, 5, 3)
    inputs = qkv(sum(lengths), heads=2, key_heads=1, width=3)
    where = layout(lengths, inputs[0].device)
    assert torch.autograd.gradcheck(
        lambda q, k, v: attend(q, k, v, where, scale=0.7, softcap=softcap, window=3), inputs
    )


def test_dropout_keeps_the_mean_and_without_it_nothing_is_dropped():
    lengths = (6, 4)
    q, k, v = qkv(sum(lengths), width=8)
    where = layout(lengths, q.device)
    torch.manual_seed(0)
    many = torch.stack([attend(q, k, v, where, scale=0.3, dropout=0.3) for _ in range(400)])
    exact = attend(q, k, v, where, scale=0.3)
    error = (many.mean(0) - exact).abs().max().item()
    assert error < 6 * many.std(0).max().item() / math.sqrt(400)
    assert not torch.equal(many[0], many[1])


@pytest.mark.parametrize("few_sizes", [True, False])
@pytest.mark.parametrize("kernel", ["flash", "blocked"])
@pytest.mark.parametrize("lengths", [(30, 70), (1, 2, 140, 90), (300, 7), (600,)])
def test_bf16_and_its_gradients_are_near_the_float64_oracle(
    monkeypatch, lengths, kernel, few_sizes
):
    if kernel == "blocked":
        monkeypatch.setattr(kernels, "suits", lambda dtype, device: False)
        monkeypatch.setattr(kernels, "LONG", 10_000)
    q, k, v = (x.detach().bfloat16().requires_grad_() for x in qkv(sum(lengths), width=16))
    exact_inputs = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = oracle(*exact_inputs, lengths, 0.25)
    ours = attend(q, k, v, layout(lengths, q.device, few_sizes=few_sizes), scale=0.25)
    assert (type(ours.grad_fn).__name__ == "FlashBackward") == (kernel == "flash")
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3))
    got = [ours, *torch.autograd.grad((ours.float() * weight).sum(), (q, k, v))]
    wanted = [exact, *torch.autograd.grad((exact * weight.double()).sum(), exact_inputs)]
    for a, b in zip(got, wanted, strict=True):
        error = a.detach().double() - b.detach()
        # 8 bits of mantissa: each rounding is off by up to 2^-9; scores, P and dS are rounded.
        assert float(error.norm() / b.detach().norm()) < 0.015


def test_a_sequences_flash_gradient_does_not_depend_on_its_company():
    """The rows of another sequence change nothing: rounding differs only by the block's shape."""
    lengths = (40, 33, 90)
    q, k, v = (x.detach().bfloat16().requires_grad_() for x in qkv(sum(lengths), width=16))

    def gradients(inputs, sizes):
        where = layout(sizes, q.device, few_sizes=True)
        out = attend(*inputs, where, scale=0.25)
        return torch.autograd.grad(out.float().square().sum(), inputs)

    together, start = gradients((q, k, v), lengths), 0
    for n in lengths:
        part = slice(start, start + n)
        alone = gradients([x[part].detach().requires_grad_() for x in (q, k, v)], (n,))
        for a, b in zip(together, alone, strict=True):
            assert torch.allclose(a[part].float(), b.float(), rtol=2e-2, atol=2e-3)
        start += n


def test_sizes_are_few_and_never_smaller_than_asked():
    sizes = [rounded(n) for n in range(1, 5000)]
    assert all(size >= n for n, size in enumerate(sizes, start=1))
    assert all(size <= max(32, 1.0625 * n) + 31 for n, size in enumerate(sizes, start=1))
    # 16 for each doubling from 512 on, every 32nd below.
    assert len({size for size in sizes if size <= 512}) == 16
    assert len({size for size in sizes if 1024 < size <= 2048}) == 16
    assert len({size for size in sizes if 2048 < size <= 4096}) == 16


def test_packed_rows_in_bf16_are_padded_without_a_trace():
    model = tiny("llama").bfloat16()
    lengths = (9, 30)
    ids = torch.arange(39) + 5
    positions = torch.cat([torch.arange(n) for n in lengths])
    seen = []
    handle = model.base_model.layers[0].register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape[1])
    )
    hidden = Runnable(model, fused=False).hidden(Packed(ids, positions, lengths))
    handle.remove()
    assert seen[-1] == 64  # after the short trials
    assert hidden.shape[0] == 39
    alone = [model.base_model(part[None]).last_hidden_state[0] for part in ids.split(lengths)]
    assert torch.allclose(hidden.float(), torch.cat(alone).float(), rtol=0.05, atol=0.05)


def test_groups_hold_every_token_once_whatever_the_lengths():
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        count = int(torch.randint(1, 40, (1,), generator=generator))
        lengths = torch.randint(1, 200, (count,), generator=generator).tolist()
        where = layout(lengths, torch.device("cpu"))
        tokens = torch.cat([g.tokens for g in where.groups])
        assert sorted(tokens.tolist()) == list(range(sum(lengths)))
        assert sum(g.count for g in where.groups) == count
    with pytest.raises(ValueError, match="at least one token"):
        layout([3, 0], torch.device("cpu"))
