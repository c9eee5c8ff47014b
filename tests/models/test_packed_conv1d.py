"""GPT-2's transposed linear layers, packed as any other while they are read."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from families import saved
from lorakit.execution.runnable import Packed, Runnable
from lorakit.kernels.packed.counting import (
    count_parameters,
    packing_of,
    weight_bytes,
    workspace_bytes,
)
from lorakit.kernels.packed.linear import PackedConv1D
from lorakit.kernels.packed.packing import whole
from lorakit.lora import LoraSpec, attach, detach, lora_layers, plan
from lorakit.models import empty_model, identify, load_model
from lorakit.models.fingerprint import identify_loaded
from lorakit.models.packable import bytes_held, packed_as
from lorakit.models.spec import FORMATS

NAMES = {"c_attn", "c_proj", "c_fc"}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    return saved(tmp_path / "base", "gpt2")


def opened(base: Path, **options: Any) -> Any:
    return load_model(str(base), dtype="float32", device="cpu", **options)[0]


def unpacked(base: Path, model: Any, dtype: torch.dtype) -> Any:
    """A plain model with the weights that a packed one stands for."""
    plain = opened(base).to(dtype)
    for path, module in model.named_modules():
        if isinstance(module, PackedConv1D):
            plain.get_submodule(path).weight.data = whole(module.packing, dtype).T.contiguous()
    return plain


@pytest.mark.parametrize("name", FORMATS)
def test_each_is_packed_from_the_file_with_its_outputs_as_rows(base: Path, name: str) -> None:
    full, model = opened(base), opened(base, base_dtype=name)
    assert packing_of(model) == name
    held = {path: m for path, m in model.named_modules() if isinstance(m, PackedConv1D)}
    assert {path.rpartition(".")[2] for path in held} == NAMES
    assert len(held) == 2 * 4
    for path, module in held.items():
        plain = full.get_submodule(path)
        want = whole(packed_as(name, plain.weight.T), torch.float32)
        assert torch.equal(whole(module.packing, torch.float32), want)
        assert torch.equal(module.weight, want.T)
        assert torch.equal(module.bias, plain.bias)
    assert count_parameters(model) == sum(p.numel() for p in full.parameters())
    outline = empty_model(str(base), dtype="float32")
    assert bytes_held(outline, name) == weight_bytes(model) + workspace_bytes(model)
    assert identify(str(base)) == identify_loaded(model, None)
    spec = LoraSpec(rank=2)
    assert plan(model, spec) == plan(full, spec)


@pytest.mark.parametrize("name", FORMATS)
def test_gradients_are_those_of_float64_through_the_dequantized_weight(
    base: Path, name: str
) -> None:
    model = opened(base, base_dtype=name).to(torch.float64)
    plain = unpacked(base, model, torch.float64)
    ids = torch.arange(9)[None] + 3
    before = bytes_of(model)
    for dropout in (0.0, 0.1):
        twin = attach(copy.deepcopy(model), LoraSpec(rank=2, dropout=dropout)).eval()
        assert all(layer.kind == "linear" for layer in lora_layers(twin).values())
        for layer in lora_layers(twin).values():
            torch.nn.init.normal_(layer.B, std=0.3)
        loss = twin(ids).logits.square().sum()
        loss.backward()
        weights, leaves = {}, {}
        for path, layer in lora_layers(twin).items():
            A, B = (x.detach().clone().double().requires_grad_() for x in (layer.A, layer.B))
            leaves[path] = A, B
            W = plain.get_parameter(f"{path}.weight")
            weights[f"{path}.weight"] = W + layer.scale * (B @ A).T
        logits = torch.func.functional_call(plain, weights, (ids,)).logits
        wanted = logits.square().sum()
        wanted.backward()
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
        for path, (A, B) in leaves.items():
            layer = lora_layers(twin)[path]
            for mine, theirs in ((layer.A.grad, A.grad), (layer.B.grad, B.grad)):
                assert (mine - theirs).abs().max() <= 1e-6 * theirs.abs().max(), path
        detach(twin)
        assert bytes_of(twin) == before


def bytes_of(model: Any) -> list[tuple[str, str]]:
    return sorted(
        (name, hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().tobytes()).hexdigest())
        for name, tensor in model.state_dict().items()
    )


def test_packed_sequences_are_right(base: Path) -> None:
    model = opened(base, base_dtype="nf4")
    plain = unpacked(base, model, torch.float32)
    runnable = Runnable(model)
    assert runnable.packs
    ids = torch.arange(9) + 3
    rows = Packed(ids, torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4]), [4, 5])
    with torch.no_grad():
        got = runnable.logits(rows, torch.arange(9))
        want = torch.cat([plain(part[None]).logits[0] for part in ids.split([4, 5])])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
