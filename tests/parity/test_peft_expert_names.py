"""Dense layers and shared experts beside fused experts: peft reads their pairs as they were trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from architectures import tiny_folder
from lorakit.adapters import load_adapter, save_adapter
from lorakit.adapters.export import lint
from lorakit.adapters.export.families import GgufBase
from lorakit.adapters.pairs import read_stored, write_stored
from lorakit.config import RunConfig
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.models import ModelSpec
from lorakit.run.commands.exporting import run_export

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # What peft says of the form that it does not read.
    pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:target_parameters=:RuntimeWarning"),
]
IDS = torch.arange(18).view(2, 9) % 40


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def merged_logits(base: Path, model: Any) -> torch.Tensor:
    """W + s·B·A in transformers' own code."""
    plain = loaded(base)
    for path, layer in lora_layers(model).items():
        plain.get_submodule(path).weight += layer.scale * layer.B @ layer.A
    return plain(input_ids=IDS, use_cache=False).logits


@torch.no_grad()
def peft_logits(base: Path, adapter: Path) -> torch.Tensor:
    model = peft.PeftModel.from_pretrained(loaded(base), adapter).eval()
    return model(input_ids=IDS, use_cache=False).logits


def adapt(base: Path, **spec: Any) -> Any:
    model = loaded(base)
    spec = {"rank": 4, "targets": ("all-linear",), "init": "gaussian", **spec}
    attach(model, LoraSpec(**spec), seed=3)
    generator = torch.Generator().manual_seed(7)
    for layer in lora_layers(model).values():
        layer.B.data.normal_(0.0, 0.2, generator=generator)
    return model


SPECS: dict[str, dict[str, Any]] = {
    "all_linear": {},
    "other_ranks": {
        "rank_pattern": {"gate_proj": 3, "layers.0.mlp.up_proj": 2, "o_proj": 5},
        "alpha_pattern": {"down_proj": 3.0},
        "rslora": True,
        "dropout": 0.1,
    },
    "these_alone": {"targets": ("gate_proj", "down_proj")},
    "one_layer": {"targets": ("re:.*layers.0.mlp.*_proj", "re:.*1.*o_proj")},
}


@pytest.mark.parametrize(
    ("family", "spec"),
    [
        *(("deepseek_v3", name) for name in SPECS),
        *(("afmoe", name) for name in ("all_linear", "other_ranks")),
        ("cohere2_moe", "all_linear"),
    ],
)
def test_peft_reads_layers_named_like_experts(family: str, spec: str, tmp_path: Path) -> None:
    base = tiny_folder(family, tmp_path / "base")
    model = adapt(base, **SPECS[spec])
    wanted = merged_logits(base, model)
    folder = save_adapter(model, tmp_path / "adapter")
    torch.testing.assert_close(peft_logits(base, folder), wanted, rtol=0, atol=1e-4)
    # Written once more from the files alone, and read by lorakit.
    again = write_stored(tmp_path / "again", read_stored(folder))
    torch.testing.assert_close(peft_logits(base, again), wanted, rtol=0, atol=1e-4)
    back = loaded(base)
    load_adapter(back, again)
    with torch.no_grad():
        got = back.eval()(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)
    stored = read_stored(again)
    assert stored.pairs.keys() == lora_layers(model).keys()
    assert stored.spec.dropout == SPECS[spec].get("dropout", 0.0)


def test_names_that_peft_takes_for_experts_are_found_and_rewritten(tmp_path: Path) -> None:
    base = tiny_folder("deepseek_v3", tmp_path / "base")
    model = adapt(base)
    wanted = merged_logits(base, model)
    stored = read_stored(save_adapter(model, tmp_path / "adapter"))
    plain = write_stored(
        tmp_path / "plain", replace(stored, config=replace(stored.config, taken=()))
    )
    assert (peft_logits(base, plain) - wanted).abs().max() > 0.1
    of_base = GgufBase.of(model.config)
    (found,) = (f for f in lint(plain, of_base) if f.runtime == "peft")
    assert (found.verdict, found.what) == ("mis-scales", "model.layers.0.mlp.down_proj")
    config = RunConfig(model=ModelSpec(str(base)), given=frozenset({"model"}))
    run_export(config, adapter=plain, form="peft", out=tmp_path / "new")
    assert not [f for f in lint(tmp_path / "new", of_base) if f.runtime == "peft"]
    torch.testing.assert_close(peft_logits(base, tmp_path / "new"), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["deepseek_v3", "cohere2_moe"])
def test_pairs_on_the_fused_experts_stand_beside_them(family: str, tmp_path: Path) -> None:
    base = tiny_folder(family, tmp_path / "base")
    model = adapt(base, target_parameters=("experts",), rank_pattern={"up_proj": 2})
    folder = save_adapter(model, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    ends = {name.rpartition(".")[2] for name in config["target_parameters"]}
    assert ends == {"weight", "gate_up_proj", "down_proj"}
    with torch.no_grad():
        wanted = model(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(peft_logits(base, folder), wanted, rtol=0, atol=1e-4)
    assert read_stored(folder).pairs.keys() == lora_layers(model).keys()


def test_families_without_fused_experts_keep_their_names(tmp_path: Path) -> None:
    base = tiny_folder("llama", tmp_path / "base")
    folder = save_adapter(adapt(base), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert "gate_proj" in config["target_modules"]
    assert config["target_parameters"] is None


@pytest.mark.parametrize("family", ["mamba", "mamba2", "falcon_h1", "nemotron_h"])
def test_peft_reads_what_is_adapted_by_default(family: str, tmp_path: Path) -> None:
    base = tiny_folder(family, tmp_path / "base")
    model = adapt(base)
    wanted = merged_logits(base, model)
    folder = save_adapter(model, tmp_path / "adapter")
    # Recurrences make more of rounding than attention does.
    assert (peft_logits(base, folder) - wanted).abs().max() <= 1e-3 * wanted.abs().max()
    with torch.no_grad():
        plain = loaded(base)(input_ids=IDS, use_cache=False).logits
    assert (plain - wanted).abs().max() > 0.05 * wanted.abs().max()
    assert not [f for f in lint(folder, GgufBase.of(model.config)) if f.runtime == "peft"]


@pytest.mark.parametrize("family", ["mamba2", "falcon_h1"])
def test_what_peft_refuses_is_said(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny_folder(family, tmp_path / "base")
    model = adapt(base, targets=("all-linear", "out_proj"))
    folder = save_adapter(model, tmp_path / "adapter")
    assert "out_proj beside a " + family in caplog.text
    with pytest.raises(ValueError, match="out_proj"):
        peft_logits(base, folder)
    verdicts = {f.verdict for f in lint(folder, GgufBase.of(model.config)) if f.runtime == "peft"}
    assert verdicts == {"refuses"}
    back = loaded(base)
    load_adapter(back, folder)
    assert lora_layers(back).keys() == lora_layers(model).keys()
