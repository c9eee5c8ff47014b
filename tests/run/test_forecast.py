"""The forecast's counts against figures worked out by hand."""

import numpy as np
import pytest
import torch

from families import tiny
from lorakit.data.table import Encoded, TokenTable
from lorakit.execution.runnable import Packed, Runnable
from lorakit.forecast import HELD, MATMUL_SHARE, flops_per_token, forecast, shape_of
from lorakit.kernels import keeping, native
from lorakit.lora import LoraSpec, attach, plan
from lorakit.models import empty_model
from lorakit.run import estimating
from lorakit.run.estimating import estimate_run
from lorakit.training import TrainSpec


@pytest.fixture(scope="module")
def model():
    return empty_model("smollm2-135m")


def test_the_shape_of_the_built_in_model(model):
    shape = shape_of(model)
    # A layer: q and o 576 x 576, k and v 192 x 576, gate, up and down 1536 x 576; 30 of them.
    layer = 2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576
    assert shape.block_parameters == 30 * layer == 106_168_320
    assert shape.head_parameters == 49152 * 576 == 28_311_552
    assert (shape.layers, shape.width, shape.vocabulary) == (30, 576, 49152)


def test_flops_of_a_token_by_the_formula(model):
    shape, chosen = shape_of(model), plan(model, LoraSpec(rank=8))
    # r = 8, s = 60, c = .45: 498 MFLOP, as published for this model.
    assert flops_per_token(shape, chosen.trainable, 60, 0.45) == pytest.approx(498e6, rel=2e-3)
    full = flops_per_token(shape, 0, 60, 0.45, full=True)
    assert full == pytest.approx(6 * 106_168_320 + 7 * 60 * 576 * 30 + 6 * 28_311_552 * 0.45)


def test_seconds_follow_the_rates_and_memory_the_tokens(model):
    shape, chosen = shape_of(model), plan(model, LoraSpec(rank=8))

    def made(rate, batch_tokens, dtype=torch.float32, elementwise=1e9):
        return forecast(
            *(shape, chosen.trainable, [60] * 100, 2700),
            epochs_tokens=6000,
            batch_tokens=batch_tokens,
            dtype=dtype,
            rate=rate,
            elementwise=elementwise,
        )

    both_halved = made(1e11, 960, elementwise=5e8).seconds
    assert both_halved == pytest.approx(2 * made(2e11, 960).seconds)
    # What the matmuls take is F tokens over their rate, or somewhat more; what is left is not.
    matmuls = made(1e11, 960).seconds - made(2e11, 960).seconds
    flops = flops_per_token(shape, chosen.trainable, 60, 0.45)
    assert 6000 * flops / 2e11 <= matmuls <= 2 * 6000 * flops / 2e11
    assert made(1e30, 960).seconds == pytest.approx(2 * made(1e30, 960, elementwise=2e9).seconds)
    assert made(1e11, 1920).peak_memory_bytes > 1.3 * made(1e11, 960).peak_memory_bytes
    halved = made(1e11, 960, torch.bfloat16).peak_memory_bytes
    assert halved < made(1e11, 960).peak_memory_bytes


def test_recomputing_costs_half_the_blocks_flops_again_and_saves_activations(model):
    """2 N + 2 P r + 2 s d L more; of the activations one block's and the inputs of all stay."""
    shape, chosen = shape_of(model), plan(model, LoraSpec(rank=8))
    lengths, numbers = [60] * 100, 30 * 6000.0

    def made(recompute):
        return forecast(
            *(shape, chosen.trainable, lengths, 2700),
            epochs_tokens=6000,
            batch_tokens=4096,
            dtype=torch.float32,
            rate=1e11,
            elementwise=1e9,
            elements_kept=numbers,
            recompute=recompute,
        )

    plain, less = made(False), made(True)
    more = 2 * 106_168_320 + 2 * 305_280 * 8 + 2 * 60 * 576 * 30
    assert less.flops_per_token - plain.flops_per_token == pytest.approx(more)
    held = HELD * numbers
    saved = 4 * 4096 * (held - held / 30 - 30 * 576)
    assert plain.peak_memory_bytes - less.peak_memory_bytes == pytest.approx(saved, abs=2)


def table(lengths):
    rows = [
        Encoded(ids=np.full(n, 7, np.int32), weight=np.ones(n, np.uint8), origin=f"row {i}")
        for i, n in enumerate(lengths)
    ]
    return TokenTable.build(rows)


def test_checkpointing_is_automatic_where_memory_would_run_out(monkeypatch):
    small = tiny("llama")
    rows = table([100] * 4)
    plain = estimate_run(small, rows, TrainSpec(), steps=1, trainable=1000)
    assert not plain.recompute
    assert not plain.note
    needed = plain.forecast.peak_memory_bytes
    monkeypatch.setattr(estimating, "available_memory", lambda device: needed)
    tight = estimate_run(small, rows, TrainSpec(), steps=1, trainable=1000)
    assert tight.recompute
    assert tight.forecast.peak_memory_bytes < needed
    assert "activation checkpointing is on" in tight.note
    off = estimate_run(
        small, rows, TrainSpec(activation_checkpointing=False), steps=1, trainable=1000
    )
    assert not off.recompute


@pytest.mark.parametrize("kernels", ["plain", "avx2"])
def test_elements_kept_by_fused_blocks_are_those_that_autograd_holds(monkeypatch, kernels):
    """Every distinct float tensor saved for the backward is counted, weights left out."""
    found = native.library()
    if kernels != "plain" and (isinstance(found, str) or kernels not in native.usable(found)):
        pytest.skip("no such compiled kernels here")
    monkeypatch.setenv("LORAKIT_KERNELS", kernels)
    keeping.forget()  # compiled blocks use memory of earlier steps again, which may be larger
    model = attach(tiny("llama", hidden_size=48), LoraSpec(rank=1)).train()
    lengths = (9, 30, 30)
    tokens = sum(lengths)
    seen = {}

    def pack(tensor):
        if tensor.is_floating_point() and tensor.shape[0] * tensor.dim() > 1:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids = torch.randint(5, 200, (tokens,))
    positions = torch.cat([torch.arange(n) for n in lengths])
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    runnable = Runnable(model)
    assert runnable.fused_blocks
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        hidden = runnable.hidden(Packed(ids, positions, lengths), training=True)
    held = sum(s.nbytes() for at, s in seen.items() if at not in own) / 4 / tokens
    expected = runnable.elements_kept(lengths)
    # What is not counted: h of each pair, the norms' 1/rms, angles, the final norm: small here
    # only because most numbers of this tiny model are in its blocks.
    assert hidden.requires_grad
    assert expected <= held <= 1.3 * expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_fine_tuning_takes_sixteen_bytes_a_parameter_and_moves_them_each_step(model, dtype):
    shape, chosen = shape_of(model), plan(model, LoraSpec(rank=8))
    common = {"epochs_tokens": 6000, "batch_tokens": 960, "dtype": dtype}
    common |= {"rate": 1e11, "elementwise": 1e9}
    everything, rows = shape.total_parameters, ([60] * 100, 2700)
    full = forecast(shape, everything, *rows, **common, full=True, steps=7, bytes_rate=1e10)
    free = forecast(shape, everything, *rows, **common, full=True)
    lora = forecast(shape, chosen.trainable, *rows, **common)
    more = 16 * everything - dtype.itemsize * everything - 16 * chosen.trainable
    assert full.peak_memory_bytes - lora.peak_memory_bytes == pytest.approx(more, abs=2)
    assert full.seconds - free.seconds == pytest.approx(7 * 28 * everything / 1e10)
    products = flops_per_token(shape, 0, 60, 0.45, full=True)
    products -= flops_per_token(shape, chosen.trainable, 60, 0.45)
    assert free.seconds - lora.seconds == pytest.approx(6000 * products / (1e11 * MATMUL_SHARE))


def test_what_others_compute_is_said_beside_the_forecast(monkeypatch):
    class Others:
        def cores(self):
            return 1.0

    monkeypatch.setattr(estimating, "OtherWork", Others)
    monkeypatch.setattr(estimating.os, "cpu_count", lambda: 2)
    small = tiny("llama")
    rows = TokenTable.build([Encoded(np.arange(9), np.ones(9, np.uint8), "a")])
    for threads, words in ((2, "1.0 of 2 cores"), (1, "")):
        monkeypatch.setattr(estimating.torch, "get_num_threads", lambda n=threads: n)
        found = estimate_run(small, rows, TrainSpec(), steps=1, trainable=1000)
        assert words in found.busy
        assert bool(found.busy) is bool(words)
        assert found.note == ""  # it is shown, and not recorded
