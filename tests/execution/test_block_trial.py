"""Fused blocks in 16 bits against the model's own, block by block."""

import pytest

import lorakit.execution.fused as fused_module
from families import tiny
from lorakit.execution.runnable import Runnable
from lorakit.lora import LoraSpec, attach


def small():
    """A model in bfloat16, with pairs."""
    model = tiny("llama").bfloat16()
    attach(model, LoraSpec(rank=3))
    return model


def test_blocks_in_16_bits_are_fused():
    assert len(Runnable(small()).fused_blocks) == 2


@pytest.mark.parametrize("wrong", ["output", "gradient of a pair"])
def test_a_block_that_gives_something_else_is_not(wrong, monkeypatch):
    real = fused_module.gated_mlp

    def other(x_TD, norm_D, eps, gate, up, down):
        y_TD = real(x_TD, norm_D, eps, gate, up, down)
        if wrong == "output":
            return 1.2 * y_TD
        return y_TD.detach() + 0.5 * (y_TD - y_TD.detach())  # the same values

    monkeypatch.setenv("LORAKIT_KERNELS", "plain")
    monkeypatch.setattr(fused_module, "gated_mlp", other)
    assert not Runnable(small()).fused_blocks
