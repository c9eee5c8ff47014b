"""On a GPU the same promises hold; skipped where there is none."""

import pytest
import torch

from lorakit.data.batches import micro_batches
from lorakit.data.table import Encoded, TokenTable
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.models.attention import packed_attention
from lorakit.training import TrainSpec, fit, make_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def adapted(device: str, dtype: torch.dtype):
    from families import tiny

    model = tiny("llama").to(device, dtype)
    return attach(model, LoraSpec(rank=4), seed=0)


def rows() -> TokenTable:
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(8):
        ids = torch.randint(5, 250, (6 + 3 * i,), generator=generator).int().numpy()
        weight = (torch.arange(6 + 3 * i) > 2).to(torch.uint8).numpy()
        made.append(Encoded(ids, weight, f"rows:{i + 1}"))
    return TokenTable.build(made)


def losses(device: str, dtype: torch.dtype) -> list[float]:
    model, table, seen = adapted(device, dtype), rows(), []
    model.train()
    with packed_attention(model):
        fit(
            model,
            lambda step: [b.to(device) for b in micro_batches(table, range(8), 100)],
            5,
            TrainSpec(warmup=0.0),
            loss=make_loss(model),
            learning_rate=0.01,
            report=lambda e: seen.append(e["loss"]) if e["kind"] == "train" else None,
        )
    return seen


def test_the_start_of_A_is_the_same_on_every_device():
    for cpu, gpu in zip(
        lora_layers(adapted("cpu", torch.float32)).values(),
        lora_layers(adapted("cuda", torch.float32)).values(),
        strict=True,
    ):
        assert torch.equal(cpu.A, gpu.A.cpu())


def test_training_follows_the_cpu_in_float32():
    assert losses("cuda", torch.float32) == pytest.approx(losses("cpu", torch.float32), rel=1e-3)


def test_training_follows_the_cpu_in_bfloat16():
    assert losses("cuda", torch.bfloat16) == pytest.approx(losses("cpu", torch.float32), rel=5e-2)
