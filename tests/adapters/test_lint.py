"""The linter beside the readers' own code: llama.cpp's converter, and vLLM's rules where it is there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from adapter_models import adapt, edit_config, edit_tensors
from families import tiny
from gguf_oracle import SCRIPTS, tensors
from lorakit.adapters import save_adapter
from lorakit.adapters.export import lint
from lorakit.adapters.export.families import GgufBase

HEAD = "base_model.model."
LAYER = f"{HEAD}model.layers.0"
# Runs the converter once for each pair of folders; prints which of them it ended well with.
_DRIVER = """
import json, runpy, sys
script, at, jobs = sys.argv[1:]
sys.path.insert(0, at)
done = {}
for name, base, folder, out in json.loads(jobs):
    sys.argv = [script, "--base", base, "--outfile", out, folder]
    try:
        runpy.run_path(script, run_name="__main__")
        done[name] = True
    except (Exception, SystemExit):
        done[name] = False
print(json.dumps(done))
"""


def adapter(folder: Path, targets: tuple[str, ...] = ("q_proj", "v_proj"), **spec: Any) -> Path:
    return save_adapter(adapt(tiny("llama"), targets=targets, **spec), folder)


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def put(folder: Path, name: str, *shape: int) -> Path:
    edit_tensors(folder, lambda held: held.update({name: torch.ones(shape)}))
    return folder


def verdicts(folder: Path, runtime: str, base: GgufBase | None = None) -> set[tuple[str, str]]:
    return {(f.verdict, f.what) for f in lint(folder, base) if f.runtime == runtime}


# Tensors beside the pairs of a llama's adapter, and what the linter says of llama.cpp.
BESIDE = {
    "whole_norm": (f"{LAYER}.input_layernorm.weight", (64,), "mis-scales"),
    "last_norm": (f"{HEAD}model.norm.weight", (64,), "mis-scales"),
    "norm_of_queries": (f"{LAYER}.self_attn.q_norm.weight", (16,), "refuses"),
    "whole_head": (f"{HEAD}lm_head.weight", (128, 64), "refuses"),
    "whole_matrix": (f"{LAYER}.mlp.up_proj.weight", (96, 64), "refuses"),
    "new_tokens": (
        f"{HEAD}model.embed_tokens.token_adapter.trainable_tokens_delta",
        (2, 64),
        "refuses",
    ),
    "bias_of_B": (f"{LAYER}.self_attn.q_proj.lora_B.bias", (64,), "refuses"),
    "copy_of_the_base": (f"{HEAD}model.embed_tokens.base_layer.weight", (128, 64), None),
}


def test_llama_cpps_converter_ends_well_where_the_linter_says_so(tmp_path):
    """Each folder through the real converter: it fails exactly where 'refuses' is said."""
    base = tmp_path / "llama"
    tiny("llama").save_pretrained(base)
    tiny("gpt2").save_pretrained(tmp_path / "gpt2")
    folders = {"plain": adapter(tmp_path / "plain")}
    for name, (tensor, shape, _) in BESIDE.items():
        folders[name] = put(adapter(tmp_path / name), tensor, *shape)
    bare = folders["no_prefix"] = adapter(tmp_path / "no_prefix")

    def without_prefix(held: dict[str, torch.Tensor]) -> None:
        for name in [*held]:
            held[name.removeprefix(HEAD)] = held.pop(name)

    edit_tensors(bare, without_prefix)
    no_alpha = folders["no_alpha"] = adapter(tmp_path / "no_alpha")
    config = config_of(no_alpha)
    del config["lora_alpha"]
    (no_alpha / "adapter_config.json").write_text(json.dumps(config))
    jobs = [
        [name, str(base), str(f), str(tmp_path / f"{name}.gguf")] for name, f in folders.items()
    ]
    done = subprocess.run(
        [
            *(sys.executable, "-c", _DRIVER, str(SCRIPTS / "convert_lora_to_gguf.py")),
            *(str(SCRIPTS), json.dumps(jobs)),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    ended_well = json.loads(done.stdout.splitlines()[-1])
    known = GgufBase.of(tiny("llama").config)
    for name, folder in folders.items():
        said = verdicts(folder, "llama.cpp", known)
        assert ended_well[name] == all(verdict != "refuses" for verdict, _ in said), (name, said)
    for name, (tensor, _, verdict) in BESIDE.items():
        assert verdicts(folders[name], "llama.cpp") == ({(verdict, tensor)} if verdict else set())
    # A norm is in the file, where llama.cpp passes over it (llama-adapter.cpp).
    assert "blk.0.attn_norm.weight" in tensors(tmp_path / "whole_norm.gguf")


@pytest.mark.parametrize("init", ["pissa", "PiSSA_niter_4", "olora", "loftq", "corda", "lora_ga"])
def test_pairs_that_belong_to_another_base(tmp_path, init):
    """Neither reader changes the base; llama.cpp's does not even read the key."""
    folder = adapter(tmp_path / "a")
    assert verdicts(folder, "llama.cpp") == verdicts(folder, "vllm") == set()
    edit_config(folder, init_lora_weights=init)
    assert verdicts(folder, "llama.cpp") == {("mis-scales", "init_lora_weights")}
    verdict = "mis-scales" if init == "lora_ga" else "refuses"
    assert verdicts(folder, "vllm") == {(verdict, "init_lora_weights")}


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal"])
def test_inits_that_leave_the_base_alone(tmp_path, init):
    folder = adapter(tmp_path / "a")
    edit_config(folder, init_lora_weights=init)
    assert verdicts(folder, "llama.cpp") == verdicts(folder, "vllm") == set()


def test_vllm_asks_for_the_rank_of_the_configuration(tmp_path):
    """A rank above every real one, as rank_pattern leaves it: compared with --max-lora-rank."""
    folder = adapter(tmp_path / "a", rank=8)
    edit_config(folder, r=64, rank_pattern={"q_proj": 8, "v_proj": 8}, lora_alpha=64)
    found = {f.what: f for f in lint(folder) if f.runtime == "vllm"}
    assert {(f.verdict, f.what) for f in found.values()} == {
        ("needs", "rank"),
        ("mis-scales", "rank_pattern"),
    }
    assert "--max-lora-rank 64" in found["rank"].why
    assert "no pair has more than 8" in found["rank"].why
    # Of a pattern that no module has, the highest still counts.
    edit_config(folder, r=8, lora_alpha=8, rank_pattern={"nowhere": 100})
    (found_rank,) = (f for f in lint(folder) if f.runtime == "vllm")
    assert "--max-lora-rank 128" in found_rank.why
    edit_config(folder, rank_pattern={"nowhere": 1000})
    assert verdicts(folder, "vllm") == {("refuses", "rank")}


def test_an_alpha_pattern_that_changes_no_pair_is_no_finding(tmp_path):
    folder = adapter(tmp_path / "a")
    alpha = config_of(folder)["lora_alpha"]
    for pattern in ({"nowhere": 99}, {"q_proj": alpha}):
        edit_config(folder, alpha_pattern=pattern)
        assert verdicts(folder, "llama.cpp") == verdicts(folder, "vllm") == set()
    edit_config(folder, alpha_pattern={"q_proj": alpha * 2})
    wanted = {("mis-scales", "alpha_pattern")}
    assert verdicts(folder, "llama.cpp") == verdicts(folder, "vllm") == wanted


def test_what_vllm_takes_whole(tmp_path):
    """Heads of classification models, and copies of a vocabulary; no other weight."""
    folder = put(adapter(tmp_path / "a"), f"{HEAD}score.weight", 3, 64)
    edit_config(folder, modules_to_save=["score"])
    assert verdicts(folder, "vllm") == set()
    edit_config(folder, modules_to_save=None)
    assert verdicts(folder, "vllm") == {("refuses", f"{HEAD}score.weight")}
    for number, (name, refused) in enumerate(
        {
            f"{HEAD}model.embed_tokens.base_layer.weight": False,
            f"{HEAD}transformer.wte.base_layer.weight": True,
            f"{LAYER}.input_layernorm.weight": True,
            f"{LAYER}.self_attn.q_proj.bias": True,
        }.items()
    ):
        held = put(adapter(tmp_path / str(number)), name, 8)
        assert verdicts(held, "vllm") == ({("refuses", name)} if refused else set())


def test_keys_that_a_reader_needs(tmp_path):
    folder = adapter(tmp_path / "a")
    edit_config(folder, target_modules=None, lora_alpha=None)
    assert verdicts(folder, "vllm") >= {("refuses", "target_modules"), ("refuses", "lora_alpha")}
    assert verdicts(folder, "llama.cpp") == {("refuses", "lora_alpha")}


def test_layers_that_llama_cpps_converter_swaps(tmp_path):
    """GPT-2 keeps a layer's weight transposed, and the converter then swaps A and B."""
    model = adapt(tiny("gpt2"), targets=("c_attn",))
    folder = save_adapter(model, tmp_path / "a")
    wanted = {("refuses", "fan_in_fan_out")}
    assert verdicts(folder, "llama.cpp", GgufBase.of(model.config)) == wanted


@pytest.mark.parametrize("key", ["layer_replication", "use_qalora", "use_bdlora"])
def test_variants_whose_tensors_fit_no_weight_of_llama_cpp(tmp_path, key):
    folder = adapter(tmp_path / "a")
    edit_config(folder, **{key: [[0, 1]]})
    assert verdicts(folder, "llama.cpp") == {("refuses", key)}


@pytest.mark.parametrize("key", ["arrow_config", "kasa_config"])
def test_keys_that_both_pass_over(tmp_path, key):
    folder = adapter(tmp_path / "a")
    edit_config(folder, **{key: {"on": True}})
    wanted = {("mis-scales", key)}
    assert verdicts(folder, "llama.cpp") == verdicts(folder, "vllm") == wanted
