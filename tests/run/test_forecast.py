"""The forecast's counts against figures worked out by hand."""

import pytest
import torch

from lorakit.forecast import flops_per_token, forecast, shape_of
from lorakit.lora import LoraSpec, plan
from lorakit.models import empty_model


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


def test_seconds_follow_the_rate_and_memory_the_tokens(model):
    shape, chosen = shape_of(model), plan(model, LoraSpec(rank=8))

    def made(rate, batch_tokens, dtype=torch.float32):
        return forecast(
            *(shape, chosen, [60] * 100, 2700),
            epochs_tokens=6000,
            batch_tokens=batch_tokens,
            dtype=dtype,
            rate=rate,
        )

    assert made(1e11, 960).seconds == pytest.approx(2 * made(2e11, 960).seconds)
    assert made(1e11, 1920).peak_memory_bytes > 1.3 * made(1e11, 960).peak_memory_bytes
    halved = made(1e11, 960, torch.bfloat16).peak_memory_bytes
    assert halved < made(1e11, 960).peak_memory_bytes
