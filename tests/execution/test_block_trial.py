"""A fused block further from its own code than usual is held against float32."""

import pytest
import torch

from families import saved
from lorakit.execution import block_trial
from lorakit.execution.block_trial import same_blocks
from lorakit.execution.facts import settings_in_training
from lorakit.execution.family import read_decoder
from lorakit.execution.trial import positions
from lorakit.kernels import native
from lorakit.kernels.layout import layout
from lorakit.lora import LoraSpec, attach
from lorakit.models import load_model

LENGTHS = (7, 5)


@pytest.mark.parametrize("wrong", [1.0, 1.05])
@pytest.mark.parametrize("base_dtype", ["full", "int8"])
def test_as_near_to_float32_as_its_own_code(tmp_path, monkeypatch, wrong, base_dtype):
    if native.choose(torch.bfloat16, torch.device("cpu")).name == native.PLAIN:
        pytest.skip(
            "no compiled block in bfloat16 here: what is compared would be plain torch's rounding"
        )
    base = str(saved(tmp_path / "base"))
    model, _ = load_model(base, dtype="bfloat16", base_dtype=base_dtype, device="cpu")
    attach(model, LoraSpec(rank=2))
    decoder = read_decoder(model)
    assert decoder is not None
    settings = settings_in_training(model, decoder)
    by_kernels = block_trial.fused_block
    monkeypatch.setattr(block_trial, "fused_block", lambda *given: wrong * by_kernels(*given))
    # As where rounding is large: what is compared first says no.
    first = block_trial.same_computed
    monkeypatch.setattr(block_trial, "same_computed", lambda *a, **b: first(*a, **b) and False)
    paths = {block.path for block in decoder.blocks}
    ids, where = torch.arange(sum(LENGTHS)), layout(LENGTHS, torch.device("cpu"))
    same = same_blocks(model, decoder, settings, paths, ids, positions(LENGTHS), where)
    assert same == (wrong == 1.0)
