"""Blocks whose weights are packed are computed by the compiled kernels in training, and give dense blocks' bits."""

import pytest
import torch

from families import saved
from kernel_sets import format_of, sets_with, used
from lorakit.execution import fused
from lorakit.execution.facts import settings_in_training
from lorakit.execution.family import read_decoder
from lorakit.execution.trial import positions
from lorakit.kernels.layout import layout
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.lora import LoraSpec, attach
from lorakit.models import load_model


@pytest.fixture(params=sets_with("packed_fill"))
def dtype(request, monkeypatch):
    return format_of(used(monkeypatch, request.param))


def gradients(model, counted, monkeypatch):
    """Hidden states of two rows, and the gradients of every A and B."""

    def counting(*given):
        counted.append(by_library(*given))
        return counted[-1]

    by_library = fused.compiled_block
    attach(model, LoraSpec(rank=3))
    generator = torch.Generator().manual_seed(3)
    for path, parameter in model.named_parameters():
        if path.endswith(".B"):
            parameter.data.normal_(std=0.02, generator=generator)
    decoder, lengths = read_decoder(model), (7, 5)
    assert decoder is not None
    paths = {block.path for block in decoder.blocks}
    ids, where = torch.arange(sum(lengths)), layout(lengths, torch.device("cpu"))
    with monkeypatch.context() as patch:
        patch.setattr(fused, "compiled_block", counting)
        settings = settings_in_training(model, decoder)
        hidden = fused.fused_hidden(decoder, settings, paths, ids, positions(lengths), where)
    hidden.float().square().sum().backward()
    return hidden, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["nf4", "int4", "int8", "fp8"])
def test_training_has_the_bits_of_the_weights_dequantized(tmp_path, monkeypatch, name, dtype):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    base = str(saved(tmp_path / "base"))
    kind = str(dtype).removeprefix("torch.")
    packed, _ = load_model(base, dtype=kind, base_dtype=name, device="cpu")
    dense, _ = load_model(base, dtype=kind, device="cpu")
    for path, module in packed.named_modules():
        if isinstance(module, PackedLinear):
            dense.get_submodule(path).weight.data = module.weight
    counted = []
    hidden, grads = gradients(packed, counted, monkeypatch)
    assert len(counted) == len(packed.model.layers)
    assert all(each is not None for each in counted)
    wanted, of_dense = gradients(dense, [], monkeypatch)
    assert torch.equal(hidden, wanted)
    assert len(grads) == len(of_dense) > 0
    assert all(map(torch.equal, grads, of_dense))
