"""Adapters of the transformers that kept experts as modules, read beside a model that keeps them as one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from architectures import tiny_folder, tiny_model
from lorakit.adapters import load_adapter, read_adapter, save_adapter
from lorakit.adapters.load import fit_stored
from lorakit.adapters.pairs import read_stored
from lorakit.config import load_config
from lorakit.errors import AdapterError
from lorakit.lora import detach, lora_layers
from lorakit.run.commands.training import run_training
from older_adapters import FAMILIES, close, logits, merged, older_adapter, older_checkpoint


@pytest.mark.parametrize("family", FAMILIES)
def test_each_expert_has_its_own_pair(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    plain = logits(model)
    held = older_checkpoint(model, tmp_path / "base")
    pairs = older_adapter(held, tmp_path / "a", ("q_proj", *FAMILIES[family]))
    assert sum(".experts." in path for path in pairs) >= 4
    info = load_adapter(model, tmp_path / "a")
    assert any("are read as pairs on those" in note for note in info.notes)
    assert not any(".experts.0." in path for path in info.paths)
    expected = logits(merged(tmp_path / "base", held, pairs, lambda path, r: 6 / r))
    assert close(logits(model), expected)
    assert not close(plain, expected)
    # Saved again it is an adapter of today's form, and the same.
    save_adapter(model, tmp_path / "again")
    detach(model)
    load_adapter(model, tmp_path / "again")
    assert close(logits(model), expected)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("rslora", [False, True])
def test_experts_left_out_and_unlike_ranks_and_scales(
    family: str, rslora: bool, tmp_path: Path
) -> None:
    names = FAMILIES[family][:3]
    model = tiny_model(family)
    held = older_checkpoint(model, tmp_path / "base")
    # One expert has no pair, the matrix beside the gate's has another rank and alpha, one has no gate.
    pairs = older_adapter(
        held,
        tmp_path / "a",
        names,
        only=lambda path: ".experts.1." not in path and f".experts.2.{names[0]}" not in path,
        rank_pattern={"w3": 3, "up_proj": 3},
        alpha_pattern={"w3": 2, "up_proj": 2, "experts.0.w2": 9, "experts.0.down_proj": 9},
        use_rslora=rslora,
    )
    # peft writes no pair for a module that is not there: the configuration must not name it.
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    config["target_modules"] = sorted(pairs)
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))

    def scale(path: str, rank: int) -> float:
        alpha = next((a for k, a in config["alpha_pattern"].items() if path.endswith(k)), 6)
        return alpha / (rank**0.5 if rslora else rank)

    load_adapter(model, tmp_path / "a")
    assert close(logits(model), logits(merged(tmp_path / "base", held, pairs, scale)))


def test_without_a_model_it_is_shown_as_it_was_saved(tmp_path: Path) -> None:
    held = older_checkpoint(tiny_model("mixtral"), tmp_path / "base")
    pairs = older_adapter(held, tmp_path / "a", ("w1", "w2", "w3"), lora_dropout=0.05)
    assert set(read_adapter(tmp_path / "a").paths) == set(pairs)
    plan, notes = fit_stored(tiny_model("mixtral"), read_stored(tmp_path / "a"))
    assert plan.spec.dropout == 0.0
    assert any("dropout 0.05 is left out" in note for note in notes)
    # Of one fused matrix, both parts: twice the rank; the same numbers besides.
    ranks = {target.path.rsplit(".", 1)[-1]: target.rank for target in plan.targets}
    assert ranks == {"gate_up_proj": 4, "down_proj": 2}


def test_a_pair_of_another_size_is_refused_by_its_name(tmp_path: Path) -> None:
    held = older_checkpoint(tiny_model("mixtral"), tmp_path / "base")
    name = next(name for name in held if ".experts.1.w2" in name)
    held[name] = torch.zeros(7, 5)
    older_adapter(held, tmp_path / "a", ("w2",))
    with pytest.raises(AdapterError, match=r"A of .*experts\.1\.w2 is \(2, 5\) and B \(7, 2\)"):
        load_adapter(tiny_model("mixtral"), tmp_path / "a")
    assert not lora_layers(tiny_model("mixtral"))


def test_training_goes_on_from_it(tmp_path: Path) -> None:
    # Shared experts have the same last names, and are linear layers still.
    base = tiny_folder("qwen2_moe", tmp_path / "base")
    names = ("gate_proj", "up_proj", "down_proj")
    pairs = older_adapter(load_file(base / "model.safetensors"), tmp_path / "a", names)
    rows = [{"prompt": f"say {i}", "completion": f" {i * 7 % 5}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {
        "model": str(base),
        "data": str(tmp_path / "rows.jsonl"),
        "from": str(tmp_path / "a"),
    }
    options |= {"out": str(tmp_path / "run"), "max_steps": 1, "learning_rate": 1e-3}
    run_training(load_config(None, options))
    paths = read_adapter(tmp_path / "run" / "adapter").paths
    ends = {path.split(".mlp.")[1] for path in paths}
    assert ends == {f"shared_expert.{name}" for name in names} | {
        "experts.gate_up_proj",
        "experts.down_proj",
    }
    assert len(pairs) > len(paths)
