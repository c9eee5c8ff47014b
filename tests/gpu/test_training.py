"""Training on a GPU follows training on the CPU; skipped where there is none."""

from functools import partial

import pytest
import torch

from families import tiny
from lorakit.data.batches import micro_batches
from lorakit.data.table import Encoded, TokenTable
from lorakit.lora import LoraSpec, attach, lora_layers, plan
from lorakit.lora.jobs import Jobs
from lorakit.training import (
    CausalLoss,
    Course,
    JointLoss,
    Observers,
    Schedule,
    TrainSpec,
    fit,
    fit_jobs,
    guard_of,
)

pytestmark = pytest.mark.gpu
RANKS = (4, 1, 8)


def rows(seed: int = 1) -> TokenTable:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(8):
        ids = torch.randint(5, 250, (6 + 3 * i,), generator=generator).int().numpy()
        weight = (torch.arange(6 + 3 * i) > 2).to(torch.uint8).numpy()
        made.append(Encoded(ids, weight, f"rows:{i + 1}"))
    return TokenTable.build(made)


def batches(device: str, step: int):
    return [b.to(device) for b in micro_batches(rows(), range(8), 100)]


def trained(family: str, device: str, dtype: torch.dtype, rank: int = 4):
    """Losses of five steps and the pairs after them, all on the CPU."""
    seen: list[float] = []
    # Dropout draws other numbers on every device.
    still = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
    base = tiny(family, **(still if family == "gpt2" else {}))
    model = attach(base.to(device, dtype), LoraSpec(rank=rank), seed=0).train()
    fit(
        model,
        partial(batches, device),
        Schedule(5, 0.01, TrainSpec(warmup=0.0)),
        loss=CausalLoss(model),
        observers=Observers(
            report=lambda e: seen.append(e["loss"]) if e["kind"] == "train" else None
        ),
    )
    return seen, {p: (x.A.cpu(), x.B.cpu()) for p, x in lora_layers(model).items()}


def apart(ours, theirs) -> float:
    return max(
        float((a - b).detach().norm() / b.detach().norm())
        for path in theirs
        for a, b in zip(ours[path], theirs[path], strict=True)
    )


def test_the_start_of_A_is_the_same_on_every_device(device):
    models = [
        attach(tiny("llama").to(where), LoraSpec(rank=4), seed=0) for where in ("cpu", device)
    ]
    for cpu, gpu in zip(*(lora_layers(m).values() for m in models), strict=True):
        assert torch.equal(cpu.A, gpu.A.cpu())


# Blocks of every kind: fused, with biases, with norms of queries and keys, windows, softcaps, plain.
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gpt2"])
def test_training_follows_the_cpu_in_float32(family, device):
    expected, theirs = trained(family, "cpu", torch.float32)
    losses, pairs = trained(family, device, torch.float32)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert apart(pairs, theirs) < 1e-2


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_training_follows_the_cpu_in_bfloat16(family, device):
    expected, _ = trained(family, "cpu", torch.float32)
    losses, _ = trained(family, device, torch.bfloat16)
    assert losses == pytest.approx(expected, rel=5e-2)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_job_in_company_is_the_job_alone(family, device):
    model = tiny(family).to(device)
    jobs = Jobs(model, [plan(model, LoraSpec(rank=rank)) for rank in RANKS], [0 for _ in RANKS])
    courses = [
        Course(
            jobs.parameters(j),
            partial(batches, device),
            Schedule(5, 0.01, TrainSpec(warmup=0.0)),
            guard=guard_of(jobs, j),
        )
        for j in range(len(RANKS))
    ]
    fit_jobs(jobs, courses, loss=JointLoss(jobs), batch_tokens=400)
    for job, rank in enumerate(RANKS):
        _, theirs = trained(family, device, torch.float32, rank)
        ours = {p: (x.A.cpu(), x.B.cpu()) for p, x in jobs.layers[job].items()}
        # 1e-5 on the CPU, where sums of another order round alike.
        assert apart(ours, theirs) < 1e-3
