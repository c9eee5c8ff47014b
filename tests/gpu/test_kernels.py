"""Kernels, attention and graphs of a GPU on a GPU: used, and the plain way's answer.

`TRITON_INTERPRET=1 LORAKIT_TEST_DEVICE=cpu` tries what needs no card.
"""

import logging
from functools import partial

import pytest
import torch

from families import tiny
from lorakit.data.batches import micro_batches
from lorakit.data.table import Encoded, TokenTable
from lorakit.kernels import attention_varlen
from lorakit.kernels.gpu import dispatch
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.training import CausalLoss, Observers, Schedule, TrainSpec, fit

pytestmark = pytest.mark.gpu
STEPS = 8


def rows(longest: int) -> TokenTable:
    g = torch.Generator().manual_seed(1)
    found = []
    for i in range(6):
        length = longest * (i + 2) // 7
        ids = torch.randint(5, 250, (length,), generator=g).int().numpy()
        weight = (torch.arange(length) > length // 2).to(torch.uint8).numpy()
        found.append(Encoded(ids, weight, f"rows:{i + 1}"))
    return TokenTable.build(found)


def batches(table: TokenTable, device: str, step: int):
    return [b.to(device) for b in micro_batches(table, range(len(table)), 10_000)]


def trained(device: str, dtype: torch.dtype):
    """Losses, and the pairs, of steps on the same rows."""
    seen: list[float] = []
    model = attach(tiny("llama", head_dim=16).to(device, dtype), LoraSpec(rank=4), seed=0).train()
    fit(
        model,
        partial(batches, rows(6 if device == "cpu" else 40), device),
        Schedule(1 if device == "cpu" else STEPS, 0.01, TrainSpec(warmup=0.0)),
        loss=CausalLoss(model),
        observers=Observers(
            report=lambda e: seen.append(e["loss"]) if e["kind"] == "train" else None
        ),
    )
    return seen, [t.cpu() for x in lora_layers(model).values() for t in (x.A, x.B)]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("LORAKIT_TRIALS", "again")
    monkeypatch.setenv("LORAKIT_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "left", {})
    monkeypatch.setattr(dispatch, "_right", set())
    monkeypatch.setattr(attention_varlen, "_right", {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_training_by_kernels_follows_the_plain_way(device, dtype, monkeypatch):
    losses, pairs = trained(device, dtype)
    assert dispatch.left == {}
    assert {key[0] for key in dispatch._right} == set(dispatch._HOMES)
    monkeypatch.setenv("LORAKIT_KERNELS", "plain")
    expected, theirs = trained(device, dtype)
    close = 1e-4 if dtype == torch.float32 else 3e-2
    assert losses == pytest.approx(expected, rel=close)
    if dtype == torch.float32:
        for one, other in zip(pairs, theirs, strict=True):
            assert (one - other).norm() < 1e-2 * other.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_attention_is_packed(device, dtype):
    if device == "cpu":
        pytest.skip("no varlen kernel runs on a CPU")
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("flash attention needs compute capability 8")
    trained(device, dtype)
    assert attention_varlen._right
    assert all(attention_varlen._right.values())


def test_steps_are_captured_and_give_what_they_gave(device, monkeypatch, caplog):
    if device == "cpu":
        pytest.skip("no graph is captured on a CPU")
    with caplog.at_level(logging.INFO, "lorakit.training"):
        losses, _ = trained(device, torch.bfloat16)
    assert "are captured" in caplog.text, caplog.text
    assert "not used" not in caplog.text
    monkeypatch.setenv("LORAKIT_CUDA_GRAPHS", "0")
    expected, _ = trained(device, torch.bfloat16)
    assert losses == pytest.approx(expected, rel=2e-2)
