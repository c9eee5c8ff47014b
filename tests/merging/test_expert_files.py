"""Pairs on experts merged into a model's files, which keep experts one by one, or as the model does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from architectures import tiny_folder, tiny_model
from lorakit.adapters import save_adapter
from lorakit.adapters.pairs import read_stored
from lorakit.config import load_config
from lorakit.errors import ModelError
from lorakit.files.header import StoredTensor
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.merging.expert_files import by_files
from lorakit.models.weights import tensors_of
from lorakit.run.commands.merging import run_merge

# How transformers 5.24 writes each: one tensor an expert; as in the model; of two axes.
FAMILIES = {
    "mixtral": ("experts", "gate.weight"),
    "qwen3_moe": ("experts",),
    "nemotron_h": ("experts",),
    "gpt_oss": ("experts", "router.weight"),
    "granitemoe": ("experts",),
    "dbrx": ("experts",),
}


def make(family: str, root: Path, **spec: Any) -> tuple[Path, Path, Any]:
    """A base's folder, an adapter's, and the weights W + s·B·A by hand in the model."""
    base, model = tiny_folder(family, root / "base"), tiny_model(family)
    named = {"targets": (), "target_parameters": FAMILIES[family], **spec}
    attach(model, LoraSpec(rank=2, **named))
    generator = torch.Generator().manual_seed(2)
    for layer in lora_layers(model).values():
        layer.B.data.copy_(torch.empty(layer.B.shape).normal_(0, 0.2, generator=generator))
    save_adapter(model, root / "adapter")
    by_hand = tiny_model(family)
    for path, layer in lora_layers(model).items():
        A, B, s, count = layer.A.detach(), layer.B.detach(), layer.scale, layer.geometry.experts
        if not count:
            by_hand.get_parameter(f"{path}.weight").data += s * B @ A
            continue
        W, r = by_hand.get_parameter(path).data, len(A) // count
        for e in range(count):
            delta = s * B[:, e::count] @ A[e * r : (e + 1) * r]
            part = W[e] if W.dim() == 3 else W
            part += delta.T if layer.geometry.swapped else delta
    return base, root / "adapter", by_hand


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 24)[None]).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_merged_expert_by_expert_and_checked(family: str, tmp_path: Path) -> None:
    base, adapter, by_hand = make(family, tmp_path)
    config = load_config(None, {"model": str(base)})
    out = tmp_path / "merged"
    made = run_merge(
        config, adapters=[(str(adapter), 1.0)], out=out, dtype="base", certify="weights"
    )
    assert made.weights is not None
    assert made.weights.passed
    assert not made.comparisons
    # Each tensor that the adapter changes, and no other: the rest is copied.
    assert set(tensors_of(out)) == set(tensors_of(base))
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    expected = logits(by_hand)
    assert float((logits(merged) - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    assert not torch.allclose(logits(tiny_model(family)), expected, rtol=1e-2)


def test_in_sixteen_bits_and_beside_layers(tmp_path: Path) -> None:
    base, adapter, _ = make("mixtral", tmp_path, targets=("q_proj",))
    config = load_config(None, {"model": str(base)})
    for dtype, certify in (("bfloat16", "weights"), ("base", "logits")):
        made = run_merge(
            *(config,),
            adapters=[(str(adapter), 1.0)],
            out=tmp_path / f"merged-{dtype}",
            dtype=dtype,
            certify=certify,
        )
        assert made.weights is not None
        assert made.weights.passed
        assert bool(made.comparisons) == (certify == "logits")
        # 2 layers: 4 experts of 3 matrices, one router, one q_proj.
        assert len(made.weights.merged) == 2 * (4 * 3 + 1 + 1)
        expected = "bfloat16" if dtype == "bfloat16" else "float32"
        assert all(check.dtype == expected for check in made.weights.merged)


def test_files_that_lack_an_expert_are_not_taken_for_the_whole(tmp_path: Path) -> None:
    base, adapter, _ = make("mixtral", tmp_path)
    model, stored, held = tiny_model("mixtral"), read_stored(adapter), tensors_of(base)
    from lorakit.adapters.load import fit_stored

    plan, _ = fit_stored(model, stored)
    assert len(by_files(model, plan, stored.pairs, held).plan.targets) > len(plan.targets)
    fewer: dict[str, StoredTensor] = {n: t for n, t in held.items() if ".experts.3.w1" not in n}
    with pytest.raises(ModelError, match="hold no tensor"):
        by_files(model, plan, stored.pairs, fewer)
