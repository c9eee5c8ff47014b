"""peft renames the tensors of an adapter: they are written under names that become the layers' own."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.utils.transformers_weight_conversion import (
    convert_peft_adapter_state_dict_for_transformers,
)
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from architectures import tiny_config, tiny_folder
from lorakit.adapters import load_adapter, read_adapter, save_adapter
from lorakit.adapters.combine import combine
from lorakit.adapters.export import lint
from lorakit.adapters.export.families import GgufBase
from lorakit.adapters.names import PREFIX
from lorakit.adapters.pairs import read_stored, write_stored
from lorakit.adapters.parents import Part
from lorakit.adapters.peft_names import file_path, read_at
from lorakit.adapters.specs import CombineSpec
from lorakit.config import RunConfig
from lorakit.files.tensors import read_shapes
from lorakit.lora import LoraSpec, attach, detach, lora_layers, plan
from lorakit.models import ModelSpec
from lorakit.models.renaming import Renamings
from lorakit.run.commands.exporting import run_export

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # What peft says of the names that it does not find.
    pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning"),
]
IDS = torch.arange(18).view(2, 9) % 40


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def adapt(base: Path, **spec: Any) -> Any:
    model = loaded(base)
    attach(model, LoraSpec(**{"rank": 4, "init": "gaussian", **spec}), seed=3)
    generator = torch.Generator().manual_seed(7)
    for layer in lora_layers(model).values():
        layer.B.data.normal_(0.0, 0.2, generator=generator)
    return model


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


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


PATTERNS = {"rank_pattern": {"shared_experts.up_proj": 2, "o_proj": 3}, "dropout": 0.1}


@pytest.mark.parametrize(
    ("family", "spec"), [("laguna", {}), ("laguna", PATTERNS), ("inkling2_text", {})]
)
def test_peft_reads_paths_that_it_renames(
    family: str, spec: dict[str, Any], tmp_path: Path
) -> None:
    base = tiny_folder(family, tmp_path / "base")
    model = adapt(base, **spec)
    wanted = merged_logits(base, model)
    folder = save_adapter(model, tmp_path / "adapter")
    close(peft_logits(base, folder), wanted)
    # lorakit has the layers' own paths, with a model and without one, and writes the same again.
    assert set(read_adapter(folder).paths) == set(lora_layers(model))
    stored = read_stored(folder)
    assert set(stored.pairs) == set(lora_layers(model))
    again = write_stored(tmp_path / "again", stored)
    close(peft_logits(base, again), wanted)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    for without_record in (False, True):
        if without_record:
            (again / "lorakit.json").unlink()
        back = loaded(base)
        load_adapter(back, again)
        with torch.no_grad():
            close(back.eval()(input_ids=IDS, use_cache=False).logits, wanted)


def test_a_combined_adapter_is_found_by_peft_too(tmp_path: Path) -> None:
    base = tiny_folder("laguna", tmp_path / "base")
    parts = [
        Part(read_stored(save_adapter(adapt(base, rank=rank), tmp_path / str(rank))), 0.5, name="x")
        for rank in (2, 3)
    ]
    folder = write_stored(tmp_path / "both", combine(parts, CombineSpec(how="cat")).adapter)
    model = loaded(base)
    load_adapter(model, folder)
    with torch.no_grad():
        close(peft_logits(base, folder), model.eval()(input_ids=IDS, use_cache=False).logits)


def test_what_peft_would_not_find_is_named_and_rewritten(tmp_path: Path) -> None:
    base = tiny_folder("laguna", tmp_path / "base")
    model = adapt(base)
    wanted = merged_logits(base, model)
    folder = save_adapter(model, tmp_path / "adapter")
    record = json.loads((folder / "lorakit.json").read_text())
    own = "model.layers.1.mlp.shared_experts.up_proj"
    assert record["moved"][own] == "model.layers.1.mlp.shared_expert.up_proj"
    of_base = GgufBase.of(model.config)
    assert not [f for f in lint(folder, of_base, loaded(base)) if f.runtime == "peft"]
    # As peft itself writes it: under the layers' own names.
    theirs = peft.get_peft_model(
        loaded(base), peft.LoraConfig(r=4, target_parameters=[own + ".weight"], target_modules=[])
    )
    theirs.save_pretrained(tmp_path / "theirs")
    assert f"{PREFIX}{own}.lora_A.weight" in read_shapes(
        tmp_path / "theirs" / "adapter_model.safetensors"
    )
    (found,) = (f for f in lint(tmp_path / "theirs", of_base, loaded(base)) if f.runtime == "peft")
    assert (found.verdict, found.what) == ("mis-scales", own)
    assert "shared_experts..up_proj" in found.why
    config = RunConfig(model=ModelSpec(str(base)), given=frozenset({"model"}))
    run_export(config, adapter=tmp_path / "theirs", form="peft", out=tmp_path / "new")
    assert not [f for f in lint(tmp_path / "new", of_base, loaded(base)) if f.runtime == "peft"]
    run_export(config, adapter=folder, form="peft", out=tmp_path / "same")
    close(peft_logits(base, tmp_path / "same"), wanted)
    run_export(config, adapter=folder, form="vllm", out=tmp_path / "vllm")
    shapes = read_shapes(tmp_path / "vllm" / "adapter_model.safetensors")
    assert f"{PREFIX}{own}.lora_A.weight" in shapes


def test_a_layer_that_peft_finds_under_no_name_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny_folder("inkling2_text", tmp_path / "base")
    made = plan(loaded(base), LoraSpec(rank=4))
    reasons = {s.path: s.reason for s in made.skipped if s.path.endswith("weight_proj")}
    assert reasons
    assert all("under no name beside a inkling2_text" in why for why in reasons.values())
    with caplog.at_level(logging.WARNING):
        folder = save_adapter(adapt(base, targets=("all-linear", "weight_proj")), tmp_path / "a")
    assert "peft leaves out the pair on" in caplog.text
    found = [f for f in lint(folder, None, loaded(base)) if f.runtime == "peft"]
    assert [(f.verdict, "lorakit merge" in f.why) for f in found] == [("mis-scales", True)]
    load_adapter(loaded(base), folder)


def empty(family: str) -> nn.Module:
    """A model of a family without its numbers."""
    with torch.device("meta"):
        if family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return AutoModelForCausalLM.from_config(tiny_config(family))
        return AutoModelForImageTextToText.from_config(AutoConfig.for_model(family))


FAMILIES = ("laguna", "inkling2_text", "inkling2_loop_text", "hy_v3", "axk1", "inkling2")


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_puts_every_default_pair_where_it_belongs(family: str) -> None:
    """peft's own function, on names alone."""
    model = empty(family)
    rules = Renamings.of(model)
    paths = [target.path for target in plan(model, LoraSpec(rank=1)).targets]
    files = {path: file_path(path, rules) for path in paths}
    assert None not in files.values()
    tensors = {f"{PREFIX}{there}.lora_A.weight": torch.zeros(1) for there in files.values()}
    config = peft.LoraConfig(target_modules=["any"])
    read = convert_peft_adapter_state_dict_for_transformers(model, config, tensors)
    assert read.keys() == {f"{PREFIX}{path}.lora_A.weight" for path in paths}
    # And what is known of a path of the layers' own is what peft does with it.
    for path in paths:
        plain = {f"{PREFIX}{path}.lora_A.weight": torch.zeros(1)}
        (name,) = convert_peft_adapter_state_dict_for_transformers(model, config, plain)
        assert name == f"{PREFIX}{read_at(path, rules)}.lora_A.weight"


def test_the_linter_asks_by_the_type_of_the_whole_model(tmp_path: Path) -> None:
    """peft knows glm4v_moe, whose language tower is of another type."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(tiny_config("glm4v_moe"))
    attach(model, LoraSpec(rank=2))
    stored = read_stored(save_adapter(model, tmp_path / "adapter"))
    of_base = GgufBase.of(model.config)
    assert of_base.family != model.config.model_type
    plain = write_stored(
        tmp_path / "plain", replace(stored, config=replace(stored.config, taken=()))
    )
    for folder, verdicts in ((plain, ["mis-scales"]), (tmp_path / "adapter", [])):
        found = [f for f in lint(folder, of_base, detach(model)) if f.runtime == "peft"]
        assert [f.verdict for f in found] == verdicts
