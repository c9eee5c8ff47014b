"""Experts that a model keeps in one parameter, packed matrix by matrix while they are read.

The oracle is transformers' own code over plain weights: each matrix packed alone and dequantized, with the
updates of pairs formed expert by expert.
"""

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from families import tokenizer
from lorakit.errors import TargetError
from lorakit.kernels.packed.counting import (
    count_parameters,
    packing_of,
    weight_bytes,
    workspace_bytes,
)
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.kernels.packed.matrices import MatricesTensor, PackedMatrices, dense
from lorakit.kernels.packed.packing import whole
from lorakit.lora import LoraSpec, attach, detach, lora_layers, plan
from lorakit.merging import merged_model
from lorakit.models import empty_model, identify, load_model
from lorakit.models.fingerprint import identify_loaded
from lorakit.models.packable import bytes_held, packed_as
from lorakit.models.spec import FORMATS
from mixtures import MIXTURES, mixture, rows

# dbrx keeps the matrices of all experts in one of two axes, which stay in full precision.
PACKED = [family for family in MIXTURES if family != "dbrx"]
OWN_CODE = ("llama4_text",)
"""Families whose experts are computed in one way alone."""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))


def saved(folder: Path, family: str) -> Path:
    mixture(family, vocab_size=300).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def packed(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Any:
    model, _ = load_model(str(folder), dtype="float32", base_dtype=name, device="cpu")
    return model.to(dtype)


def unpacked(folder: Path, model: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A plain model with the weights that a packed one stands for."""
    plain, _ = load_model(str(folder), dtype="float32", device="cpu")
    plain.to(dtype)
    for path, module in model.named_modules():
        if isinstance(module, PackedLinear):
            plain.get_submodule(path).weight.data = whole(module.packing, dtype)
        if isinstance(module, PackedMatrices):
            each = torch.stack([whole(module.packing(e), dtype) for e in range(module.count)])
            plain.get_parameter(path).data = each.mT.contiguous() if module.swapped else each
    return plain


def set_way(model: Any, family: str, way: str) -> None:
    if family not in OWN_CODE:
        model.set_experts_implementation(way)


def bytes_of(model: Any) -> list[tuple[str, str]]:
    """A hash of every tensor but those of pairs, by the names that they have without pairs."""
    return sorted(
        (
            name.replace(".base.", "."),
            hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().tobytes()).hexdigest(),
        )
        for name, tensor in model.state_dict().items()
        if not name.endswith((".A", ".B"))
    )


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("name", FORMATS)
def test_each_matrix_of_every_block_is_packed_from_the_file(
    tmp_path: Path, family: str, name: str
) -> None:
    folder = saved(tmp_path / "base", family)
    full, _ = load_model(str(folder), dtype="float32", device="cpu")
    model = packed(folder, name)
    assert packing_of(model) == name
    held = {path: m for path, m in model.named_modules() if isinstance(m, PackedMatrices)}
    fused = {path for path, p in full.named_parameters() if p.dim() == 3}
    assert set(held) == fused != set()
    for path, matrices in held.items():
        weight = full.get_parameter(path)
        assert matrices.weight.shape == weight.shape
        assert matrices.swapped == (family == "gpt_oss")
        for e, one in enumerate(weight):
            want = whole(packed_as(name, one.T if matrices.swapped else one), torch.float32)
            assert torch.equal(whole(matrices.packing(e), torch.float32), want)
    assert count_parameters(model) == sum(p.numel() for p in full.parameters())
    outline = empty_model(str(folder), dtype="float32")
    assert bytes_held(outline, name) == weight_bytes(model) + workspace_bytes(model)
    assert identify(str(folder)) == identify_loaded(model, None)
    assert not [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("way", ["eager", "grouped_mm", "batched_mm"])
def test_the_models_code_never_needs_all_of_them_dequantized(
    tmp_path: Path, family: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "base", family)
    model = packed(folder, "nf4")
    plain = unpacked(folder, model)
    set_way(model, family, way)
    set_way(plain, family, "eager")
    ids = torch.tensor([rows()[1]])

    def refuse(weight: MatricesTensor) -> Tensor:
        raise AssertionError(f"{tuple(weight.shape)} was dequantized")

    monkeypatch.setattr(MatricesTensor, "formed", refuse)
    attached = attach(copy.deepcopy(model), LoraSpec(rank=2, targets=(), target_parameters=ALL))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(attached(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)
    attached(ids).logits.sum().backward()
    assert all(layer.A.grad is not None for layer in lora_layers(attached).values())


ALL = ("experts",)


def with_pairs(model: Any, family: str) -> Any:
    """Trained-looking pairs on experts and attention."""
    left_out = ("shared_expert_gate",) if family == "qwen2_moe" else ()
    attach(model, LoraSpec(rank=2, target_parameters=ALL, exclude=left_out), seed=4)
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(model).values():
        layer.B.data = torch.randn(layer.B.shape, generator=generator).mul(0.3).to(layer.B)
        layer.A.data = layer.A.data.to(layer.B.dtype)
    return model


def by_loop(plain: Any, layers: dict[str, Any], ids: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """The loss of the plain model with W + ΔW, ΔW expert by expert, and the leaves it depends on."""
    weights, leaves = {}, {}
    for path, layer in layers.items():
        A, B = (x.detach().clone().requires_grad_() for x in (layer.A, layer.B))
        leaves[path] = A, B
        experts, rank = layer.geometry.experts, layer.rank
        if not experts:
            weights[f"{path}.weight"] = plain.get_parameter(f"{path}.weight") + layer.scale * B @ A
            continue
        deltas = []
        for e in range(experts):
            A_e = A[e * rank : (e + 1) * rank]
            B_e = B[:, [r * experts + e for r in range(rank)]]
            deltas.append(layer.scale * (A_e.T @ B_e.T if layer.geometry.swapped else B_e @ A_e))
        weights[path] = plain.get_parameter(path) + torch.stack(deltas)
    logits = torch.func.functional_call(plain, weights, (), {"input_ids": ids}).logits
    return logits.square().sum(), leaves


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("name", FORMATS)
def test_gradients_are_those_of_float64_through_the_dequantized_weight(
    tmp_path: Path, family: str, name: str
) -> None:
    folder = saved(tmp_path / "base", family)
    model = packed(folder, name, torch.float64)
    plain = unpacked(folder, model, torch.float64)
    set_way(plain, family, "eager")
    ids = torch.tensor([rows()[1]])
    for way in ("eager", "grouped_mm", "batched_mm"):
        for mode in (True, False, True):
            twin = with_pairs(copy.deepcopy(model), family).train(mode)
            set_way(twin, family, way)
            loss = twin(ids).logits.square().sum()
            loss.backward()
            layers = lora_layers(twin)
            wanted, leaves = by_loop(plain, layers, ids)
            wanted.backward()
            assert loss.item() == pytest.approx(wanted.item(), rel=1e-10)
            assert any(layer.geometry.experts for layer in layers.values())
            for path, (A, B) in leaves.items():
                layer = layers[path]
                for mine, theirs in ((layer.A.grad, A.grad), (layer.B.grad, B.grad)):
                    largest = float(theirs.abs().max())
                    assert float((mine - theirs).abs().max()) <= 1e-9 * largest, (path, way)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_attaching_and_detaching_change_no_byte_and_nothing_is_merged(
    tmp_path: Path, family: str
) -> None:
    model = packed(saved(tmp_path / "base", family), "nf4")
    ids, before = torch.tensor([rows()[1]]), bytes_of(model)
    classes = [type(module) for module in model.modules()]
    expected = model(ids).logits
    made = plan(model, LoraSpec(rank=2, target_parameters=ALL))
    full, _ = load_model(str(tmp_path / "base"), dtype="float32", device="cpu")
    assert made == plan(full, LoraSpec(rank=2, target_parameters=ALL))
    attach(model, made)
    assert torch.equal(model(ids).logits, expected)
    assert bytes_of(model) == before
    with pytest.raises(TargetError, match="the base is held in nf4"):
        merged_model(model)
    detach(model)
    assert bytes_of(model) == before
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(model(ids).logits, expected)


def test_a_cast_changes_the_products_and_no_packed_tensor(tmp_path: Path) -> None:
    model = packed(saved(tmp_path / "base", "mixtral"), "int8")
    held = next(m for m in model.modules() if isinstance(m, PackedMatrices))
    before = {name: tensor.clone() for name, tensor in held.held.items()}
    model.to(torch.bfloat16)
    assert held.weight.dtype == torch.bfloat16
    assert all(torch.equal(held.held[name], tensor) for name, tensor in before.items())
    assert all(held.held[name].dtype == tensor.dtype for name, tensor in before.items())


def test_what_a_packed_tensor_does_is_what_its_numbers_do(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 8, 64, generator=generator)
    each = [packed_as("nf4", one) for one in weight]
    matrices = PackedMatrices(3, iter(each), torch.float32)
    plain = torch.stack([whole(one, torch.float32) for one in each])
    x_TI, x_EI = torch.randn(5, 64, generator=generator), torch.randn(3, 64, generator=generator)
    some = torch.tensor([2, 0, 2])
    for act in (
        lambda w: w[1],
        lambda w: w[torch.tensor(1)] @ x_TI.T,
        lambda w: w[1:].sum(),
        lambda w: x_TI @ w[0].mT,
        lambda w: x_TI @ w[0].T,
        lambda w: torch.nn.functional.linear(x_TI, w[2], torch.arange(8.0)),
        lambda w: torch.bmm(w[some], x_EI[..., None]),
        lambda w: torch.bmm(x_EI[:, None], w[some].transpose(1, 2)),
        lambda w: torch.stack(list(w)),
        lambda w: w[..., 1:],
        lambda w: w.abs().amax(),
        lambda w: w.to(torch.float64),
        lambda w: x_EI.double().to(w),
        lambda w: torch.einsum("ti,eoi->teo", x_TI, w),
        lambda w: w.view(24, 64).clone(),
    ):
        torch.testing.assert_close(dense(act(matrices.weight)), act(plain))
    with pytest.raises(TypeError, match="would change a frozen weight"):
        matrices.weight.mul_(2)
    with pytest.raises(ValueError, match="3 matrices were to be packed"):
        PackedMatrices(3, iter(each[:2]), torch.float32)
