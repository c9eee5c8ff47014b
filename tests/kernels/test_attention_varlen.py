"""Packed attention by varlen kernels: the bookkeeping, with stand-ins that do what the libraries document.

No such kernel runs on a CPU. A stand-in takes the documented arguments and is strict about them.
"""

import logging
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.attention.varlen

from families import tiny
from lorakit.execution.runnable import Packed, Runnable
from lorakit.kernels import attention_varlen
from lorakit.kernels.attention import attend
from lorakit.kernels.layout import layout
from varlen_stand_in import StandIn, dense

CASES = {
    "one sequence": (9,),
    "several": (3, 1, 12, 7),
    "alike": (6, 6, 6),
}


@pytest.fixture
def stand_in(monkeypatch):
    """torch's kernel is there, flash-attn is not."""
    found = StandIn()
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", found.varlen_attn)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.setattr(attention_varlen, "_at_home", lambda device: True)
    monkeypatch.setattr(attention_varlen, "_right", {})
    # The CPU's own kernel for 16 bits stands before it.
    monkeypatch.setattr("lorakit.kernels.attention.suits", lambda dtype, device: False)
    forget()
    yield found
    forget()


@pytest.fixture
def flash_attn(stand_in, monkeypatch):
    """flash-attn is installed too."""
    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = stand_in.flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    forget()
    return stand_in


def forget():
    attention_varlen._torch_kernel.cache_clear()
    attention_varlen._flash_attn_kernel.cache_clear()


def drawn(tokens, heads=4, key_heads=2, width=16, dtype=torch.bfloat16):
    g = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(tokens, n, width, generator=g).to(dtype).requires_grad_()
        for n in (heads, key_heads, key_heads)
    ]


def held_against(lengths, tensors, **options):
    """Whether output and gradients of the real tokens are those of the dense formula."""
    tokens = sum(lengths)
    out = attend(*tensors, layout(lengths, torch.device("cpu")), scale=0.3, **options)[:tokens]
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    got = torch.autograd.grad(out, tensors, grad)
    wide = [t.detach()[:tokens].double().requires_grad_() for t in tensors]
    expected = dense(*wide, lengths, 0.3, **options)
    wanted = torch.autograd.grad(expected, wide, grad.double())
    for one, other in zip((out, *got), (expected, *wanted), strict=True):
        assert torch.allclose(one[:tokens].double(), other, atol=0.06, rtol=0.03)
        assert not one[tokens:].any()  # no gradient of tokens in no sequence


@pytest.mark.parametrize("lengths", CASES.values(), ids=CASES)
@pytest.mark.parametrize("window", [None, 1, 2, 5, 100])
def test_windows_and_sequences(stand_in, lengths, window):
    held_against(lengths, drawn(sum(lengths)), window=window)
    hides = window is not None and window < max(lengths)
    assert stand_in.calls[-1] == (window - 1 if hides else -1, 0)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (5, 1)])
def test_shared_key_heads(stand_in, heads, key_heads):
    held_against((5, 8), drawn(13, heads, key_heads))
    assert stand_in.calls


def test_tokens_of_no_sequence_are_one_more(stand_in):
    held_against((5, 4), drawn(20))
    assert layout((5, 4), torch.device("cpu")).bounds(20).starts.tolist() == [0, 5, 9, 20]
    assert layout((5, 4), torch.device("cpu")).bounds(20).longest == 11
    assert layout((5, 4), torch.device("cpu")).bounds(9).starts.tolist() == [0, 5, 9]


@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": torch.float32},
        {"width": 12},
        {"width": 264},
        {"options": {"sinks": torch.zeros(4)}},
        {"options": {"chunk": 3}},
        {"options": {"softcap": 5.0}},
        {"options": {"dropout": 0.5}},
    ],
    ids=str,
)
def test_what_the_kernel_cannot_do_is_left_to_others(stand_in, changed):
    given = {k: v for k, v in changed.items() if k != "options"}
    attend(
        *drawn(9, **given),
        layout((4, 5), torch.device("cpu")),
        scale=0.3,
        **changed.get("options", {}),
    )
    assert not stand_in.calls


def test_who_asks_for_plain_gets_it(stand_in, monkeypatch):
    monkeypatch.setenv("LORAKIT_KERNELS", "plain")
    attend(*drawn(9), layout((4, 5), torch.device("cpu")), scale=0.3)
    assert not stand_in.calls


@pytest.mark.parametrize("window", [None, 3])
def test_flash_attn_caps_scores(flash_attn, window):
    held_against((5, 8), drawn(13), window=window, softcap=2.0)
    assert flash_attn.calls[-1] == ((-1, -1) if window is None else (2, 0), 2.0)
    held_against((5, 8), drawn(13), window=window)  # what torch can do stays with torch
    assert flash_attn.calls[-1] == (-1 if window is None else 2, 0)


def test_flash_attn_stands_in_where_torch_has_none(flash_attn, monkeypatch):
    monkeypatch.delattr(torch.nn.attention.varlen, "varlen_attn")
    held_against((5, 8), drawn(13))
    assert flash_attn.calls[-1] == ((-1, -1), 0.0)


@pytest.mark.parametrize("fault", ["fails", "sees later tokens", "window of one more"])
def test_a_kernel_that_is_wrong_is_left_with_one_line(stand_in, fault, monkeypatch, caplog):
    right = stand_in.compute

    def compute(q, k, v, spans, scale, left, softcap=None):
        if fault == "fails":
            raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")
        if fault == "window of one more":
            return right(q, k, v, spans, scale, left + 1, softcap)
        return right(*(x.flip(0) for x in (q, k, v)), spans, scale, left, softcap).flip(0)

    monkeypatch.setattr(stand_in, "compute", compute)
    with caplog.at_level(logging.WARNING, "lorakit.kernels"):
        for _ in range(3):
            held_against((5, 8), drawn(13), window=3)
    assert len(caplog.records) == 1
    assert "heads of 16 elements are padded for attention" in caplog.text


# Plain blocks, windows in every layer, windows in some.
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_a_model_packs_by_it(stand_in, family):
    model = tiny(family, torch_dtype=None).to(torch.bfloat16)
    rows = Packed(torch.arange(5, 17), torch.cat([torch.arange(5), torch.arange(7)]), (5, 7))
    runnable = Runnable(model)
    assert runnable.packs
    assert runnable.fused_blocks
    stand_in.calls.clear()
    hidden = runnable.hidden(rows)
    assert stand_in.calls
    with torch.no_grad():
        alone = [
            model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
            for ids in rows.ids_T.split(rows.lengths_S)
        ]
    assert torch.allclose(hidden.float(), torch.cat(alone).float(), atol=0.05, rtol=0.05)
