"""Models whose blocks the compiled kernels compute, against their own code and against plain torch."""

import copy

import pytest
import torch

import lorakit.execution.fused as fused_module
from families import tiny
from kernel_sets import format_of, sets_with, used
from lorakit.data.batches import micro_batches
from lorakit.data.table import Encoded, TokenTable
from lorakit.execution.runnable import Runnable
from lorakit.kernels import keeping
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.run.fitting import fit_model
from lorakit.training import CausalLoss, Observers, Schedule, TrainSpec


@pytest.fixture(params=sets_with("block_forward"), autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of each set, which is forced."""
    return used(monkeypatch, request.param)


@pytest.fixture
def dtype(kernels: str) -> torch.dtype:
    """Its number format."""
    return format_of(kernels)


FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {},
    "qwen3": {},
}
SPECS = {
    "all": LoraSpec(rank=3),
    "some, of unlike ranks": LoraSpec(
        rank=2, targets=("q_proj", "up_proj", "down_proj"), rank_pattern={"up_proj": 5}, rslora=True
    ),
}


def adapted(family, dtype, spec=SPECS["all"], **changes):
    model = tiny(family, **changes).to(dtype)
    attach(model, spec)
    generator = torch.Generator().manual_seed(5)
    for layer in lora_layers(model).values():
        layer.B.data.copy_(
            torch.randn(layer.B.shape, generator=generator) / (5 if dtype == torch.float32 else 50)
        )
    return model.train()


def batch(lengths=(4, 17, 9, 61)):
    generator = torch.Generator().manual_seed(3)
    rows = []
    for n in lengths:
        ids = torch.randint(5, 200, (n,), generator=generator).numpy().astype("int32")
        weight = (torch.arange(n) >= n // 2).numpy().astype("uint8")
        rows.append(Encoded(ids=ids, weight=weight, origin=f"row {n}"))
    (only,) = micro_batches(rows, range(len(rows)), 1000)
    return only


def gradients(model, *, recompute=False, **settings):
    model.zero_grad()
    nll, _ = CausalLoss(Runnable(model, longest=61, **settings), recompute=recompute)(
        batch(), training=True
    )
    nll.backward()
    return nll.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def compiled_blocks(monkeypatch):
    """How often the library computed a block."""
    calls = []

    def counting(*inputs):
        y_TD = real(*inputs)
        if y_TD is not None:
            calls.append(y_TD.shape)
        return y_TD

    real = fused_module.compiled_block
    monkeypatch.setattr(fused_module, "compiled_block", counting)
    return calls


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_every_gradient_are_those_of_the_models_own_code(
    family, spec, recompute, dtype, compiled_blocks
):
    model = adapted(family, dtype, SPECS[spec], **FAMILIES[family])
    rounded_nll, rounded = gradients(model, fused=False)
    own_nll, own = gradients(copy.deepcopy(model).float(), fused=False)
    assert not compiled_blocks
    nll, got = gradients(model, recompute=recompute)
    assert compiled_blocks[-1][0] == 91
    assert len(compiled_blocks) >= 4  # the trial, and the step
    assert got.keys() == own.keys()
    if dtype == torch.float32:
        assert nll == pytest.approx(own_nll, rel=1e-5)
        for name, gradient in own.items():
            assert (got[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max(), name
        return
    # No further from float32's than the model's own code in 16 bits is.
    assert nll == pytest.approx(own_nll, rel=max(3e-3, 2 * abs(rounded_nll / own_nll - 1)))

    def apart(gradients):
        return sum(((gradients[n] - own[n]).norm() / own[n].norm()) ** 2 for n in own) ** 0.5

    assert apart(got) <= 1.1 * apart(rounded)


def test_a_wrong_kernel_leaves_the_block_to_plain_torch(dtype, monkeypatch):
    model = adapted("llama", dtype)
    own_nll, _ = gradients(model, fused=False)
    calls = []

    def wrong(x_TD, *_):
        calls.append(x_TD.shape)
        return 1.1 * x_TD

    monkeypatch.setattr(fused_module, "compiled_block", wrong)
    runnable = Runnable(model)
    assert len(runnable.fused_blocks) == 2
    assert len(calls) == 2
    nll, _ = CausalLoss(runnable)(batch())
    assert nll.item() == pytest.approx(own_nll, rel=1e-5 if dtype == torch.float32 else 1e-2)
    assert len(calls) == 2


@pytest.mark.parametrize("why", ["float64", "LORAKIT_KERNELS=plain", "trained weights", "dropout"])
def test_gives_way(why, dtype, compiled_blocks, monkeypatch):
    model = adapted("llama", dtype)
    if why == "float64":
        model.double()
    elif why == "trained weights":
        model.requires_grad_(True)
    elif why == "dropout":
        model = adapted("llama", dtype, LoraSpec(rank=3, dropout=0.5))
    else:
        monkeypatch.setenv(*why.split("="))
    _, got = gradients(model)
    assert got
    assert not compiled_blocks


def test_what_is_kept_is_used_again_and_never_twice_at_once(dtype):
    keeping.forget()
    model = adapted("llama", dtype)
    trained = [p for p in model.parameters() if p.requires_grad]
    loss = CausalLoss(Runnable(model, longest=61))
    first, _ = loss(batch(), training=True)
    other, _ = loss(batch((8, 50)), training=True)  # while the first is still to be followed back
    wanted = torch.autograd.grad(first, trained)
    del other
    held = keeping.held()
    assert held
    again, _ = loss(batch(), training=True)
    got = torch.autograd.grad(again, trained)
    assert all(map(torch.equal, wanted, got))
    assert keeping.held() == held
    del first, again
    keeping.forget()
    assert not keeping.held()


def test_a_training_run_has_the_losses_of_plain_torch(kernels, dtype, monkeypatch):
    losses = {}
    for name in ("plain", kernels):
        monkeypatch.setenv("LORAKIT_KERNELS", name)
        model = adapted("llama", dtype)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
        loss, losses[name] = CausalLoss(Runnable(model, longest=61)), []
        for _ in range(10):
            nll, tokens = loss(batch(), training=True)
            (nll / tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[name].append(nll.item() / tokens)
    assert losses[kernels][-1] < 0.98 * losses[kernels][0]
    close = 1e-4 if dtype == torch.float32 else 1e-2
    assert losses[kernels] == pytest.approx(losses["plain"], rel=close)


def test_a_run_that_has_ended_holds_no_memory(dtype, compiled_blocks):
    keeping.forget()
    model = adapted("llama", dtype)
    rows = TokenTable.build(
        [
            Encoded(
                ids=torch.arange(5, 5 + n).numpy().astype("int32"),
                weight=(torch.arange(n) > 0).numpy().astype("uint8"),
                origin=f"row {n}",
            )
            for n in (12, 30)
        ]
    )
    held = []
    spec = TrainSpec(batch_size=2)
    reports = Observers(report=lambda event: held.append(keeping.held()))
    fit_model(model, rows, rows.take(()), Schedule(2, 1e-3, spec), observers=reports)
    assert len(compiled_blocks) >= 4
    assert max(held) > 0
    assert keeping.held() == 0
