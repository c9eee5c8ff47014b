"""Adapters of loralib and mlx-lm, in files made here in their layout."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch.nn import functional

from families import saved, tiny
from lorakit.adapters import load_adapter
from lorakit.cli.main import run

IDS = torch.tensor([[5, 9, 2, 60, 33, 7]])
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def changed(family: str, deltas: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of the base with each delta added to its weight by hand."""
    model = tiny(family)
    with torch.no_grad():
        for path, delta in deltas.items():
            model.get_submodule(path).weight += delta
        return model(IDS).logits


def imported(family: str, adapter: Path) -> torch.Tensor:
    model = tiny(family)
    load_adapter(model, adapter)
    with torch.no_grad():
        return model(IDS).logits


def loralib_file(file: Path, tensors: Any) -> Path:
    torch.save(tensors, file)
    return file


def test_loralibs_linear_and_embedding(llama, tmp_path):
    """lora.Linear: W + alpha/r · B A; lora.Embedding: W + alpha/r · (B A)ᵀ; a trainer's prefix."""
    q, e = "model.layers.1.self_attn.q_proj", "model.embed_tokens"
    A, B = drawn(4, 48), drawn(48, 4, seed=1)
    E, F = drawn(2, 300, seed=2), drawn(48, 2, seed=3)
    tensors = {f"{q}.lora_A": A, f"{q}.lora_B": B, f"{e}.lora_A": E, f"{e}.lora_B": F}
    file = loralib_file(
        tmp_path / "l.pt", {"model_state_dict": {f"module.{k}": t for k, t in tensors.items()}}
    )
    out = tmp_path / "out"
    assert run(["import", str(file), "--base", str(llama), "--alpha", "6", "--out", str(out)]) == 0
    wanted = changed("llama", {q: 6 / 4 * B @ A, e: 6 / 2 * (F @ E).T})
    torch.testing.assert_close(imported("llama", out), wanted, rtol=1e-5, atol=1e-4)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) in [(4, 6), (2, 6)]
    recorded = json.loads((out / "lorakit.json").read_text())
    assert recorded["base"]["name"] == "llama"
    assert recorded["provenance"]["method"]["format"] == "loralib"


def test_loralibs_merged_linear_of_gpt2(gpt2, tmp_path):
    """Queries and values of c_attn; loralib's own way to the delta is a grouped convolution."""
    path, rank, alpha = "transformer.h.0.attn.c_attn", 3, 12.0
    A, B = drawn(2 * rank, 48), drawn(2 * 48, rank, seed=1)
    file = loralib_file(tmp_path / "g.pt", {f"{path}.lora_A": A, f"{path}.lora_B": B})
    out = tmp_path / "out"
    common = ["import", str(file), "--base", str(gpt2), "--alpha", "12", "--out", str(out)]
    assert run([*common, "--enable-lora", "1,0,1"]) == 0
    parts = functional.conv1d(A[None], B[:, :, None], groups=2)[0]
    delta = torch.zeros(3 * 48, 48)
    delta[:48], delta[96:] = parts[:48], parts[48:]
    wanted = changed(
        "gpt2", {path: (alpha / rank * delta).T}
    )  # a Conv1D keeps its weight transposed
    torch.testing.assert_close(imported("gpt2", out), wanted, rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        there = PeftModel.from_pretrained(tiny("gpt2"), str(out))(IDS).logits
    torch.testing.assert_close(there, wanted, rtol=1e-5, atol=1e-4)


def mlx_folder(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors", metadata={"format": "mlx"})
    parameters = {"rank": 4, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    content = {
        "fine_tune_type": "lora",
        "num_layers": 16,
        "lora_parameters": parameters | config.pop("lora_parameters", {}),
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


# What mlx_lm/lora.py of each version writes of its settings, and what its tuner/lora.py multiplies by.
MLX_VERSIONS = {
    "0.13.0": ({"lora_layers": 16}, 16.0, 10.0 * 16 / 4, "multiplied by scale · alpha / rank"),
    "0.14.3": (
        {"lora_layers": 16, "use_dora": False},
        16.0,
        10.0,
        "0.14.1 trained it, the scale is 40",
    ),
    "0.22.0": ({"num_layers": 16, "fine_tune_type": "lora"}, 16.0, 10.0, "does not use it"),
    "0.32.2": ({"num_layers": 16, "fine_tune_type": "lora"}, None, 10.0, None),
}


@pytest.mark.parametrize("version", MLX_VERSIONS)
def test_mlx_lms_folder(llama, tmp_path, capsys, version):
    """y = W x + scale (x a) b, that is W + scale (a b)ᵀ; an alpha beside counted up to 0.14.1."""
    settings, alpha, scale, note = MLX_VERSIONS[version]
    path = "model.layers.0.self_attn.q_proj"
    a, b = drawn(48, 4) * 0.2, drawn(4, 48, seed=1)
    parameters = {"scale": 10.0} | ({} if alpha is None else {"alpha": alpha})
    folder = mlx_folder(
        tmp_path / "m", {f"{path}.lora_a": a, f"{path}.lora_b": b}, lora_parameters=parameters
    )
    written = json.loads((folder / "adapter_config.json").read_text())
    own = {"lora_parameters": written["lora_parameters"], **settings}
    (folder / "adapter_config.json").write_text(json.dumps(own))
    out = tmp_path / "out"
    assert run(["import", str(folder), "--base", str(llama), "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("alpha" in said) == (note is not None)
    assert note is None or note in said
    wanted = changed("llama", {path: scale * (a @ b).T})
    torch.testing.assert_close(imported("llama", out), wanted, rtol=1e-5, atol=1e-4)


def test_mlx_lms_dora_of_old_versions(llama, tmp_path, capsys):
    a, b = drawn(48, 4), drawn(4, 48, seed=1)
    folder = mlx_folder(tmp_path / "m", {f"{Q}.lora_a": a, f"{Q}.lora_b": b})
    edit = json.loads((folder / "adapter_config.json").read_text()) | {"use_dora": True}
    del edit["fine_tune_type"]
    (folder / "adapter_config.json").write_text(json.dumps(edit))
    code = run(["import", str(folder), "--base", str(llama), "--out", str(tmp_path / "out")])
    assert (code, "'dora'" in capsys.readouterr().err) == (2, True)


class Malicious:
    """A pickle that makes a folder when it is opened carelessly."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_malicious_pickle_is_refused_and_runs_nothing(llama, tmp_path, capsys, how):
    file, place = tmp_path / "bad.pt", tmp_path / "was-here"
    if how == "torch":
        torch.save({"x.lora_A": Malicious(place)}, file)
    else:
        file.write_bytes(pickle.dumps({"x.lora_A": Malicious(place)}))
    code = run(
        ["import", str(file), "--base", str(llama), "--alpha", "8", "--out", str(tmp_path / "o")]
    )
    said = capsys.readouterr().err
    assert code == 2
    assert "was not opened" in said
    assert "can run code" in said
    assert not place.exists()
    assert not (tmp_path / "o").exists()
    # The file is as malicious as it is meant to be.
    torch.load(file, weights_only=False) if how == "torch" else pickle.loads(file.read_bytes())
    assert place.is_dir()


Q = "model.layers.0.self_attn.q_proj"
BAD: dict[str, tuple[dict[str, torch.Tensor], list[str], str]] = {
    "no alpha": (
        {f"{Q}.lora_A": drawn(2, 48), f"{Q}.lora_B": drawn(48, 2)},
        [],
        "give loralib's lora_alpha",
    ),
    "half a pair": (
        {f"{Q}.lora_A": drawn(2, 48)},
        ["--alpha", "8"],
        "lacks model.layers.0.self_attn.q_proj.lora_B",
    ),
    "a bias": ({f"{Q}.bias": drawn(48)}, ["--alpha", "8"], "a trained bias"),
    "unknown": (
        {
            "model.layers.0.self_attn.q_prjo.lora_A": drawn(2, 48),
            "model.layers.0.self_attn.q_prjo.lora_B": drawn(48, 2),
        },
        ["--alpha", "8"],
        "did you mean 'model.layers.0.self_attn.q_proj'",
    ),
    "parts": (
        {f"{Q}.lora_A": drawn(4, 48), f"{Q}.lora_B": drawn(32, 2)},
        ["--alpha", "8"],
        "2 of its 3 parts",
    ),
    "other parts": (
        {f"{Q}.lora_A": drawn(4, 48), f"{Q}.lora_B": drawn(32, 2)},
        ["--alpha", "8", "--enable-lora", "1,0,0"],
        "--enable-lora names 1 of 3",
    ),
    "inputs": (
        {f"{Q}.lora_A": drawn(2, 40), f"{Q}.lora_B": drawn(48, 2)},
        ["--alpha", "8"],
        "(2, 40) and (48, 2)",
    ),
    "nan": (
        {f"{Q}.lora_A": drawn(2, 48) / 0, f"{Q}.lora_B": drawn(48, 2)},
        ["--alpha", "8"],
        "NaN or an infinity",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_in_loralibs_file_is_named(llama, tmp_path, capsys, case):
    tensors, flags, message = BAD[case]
    file = loralib_file(tmp_path / "l.pt", tensors)
    code = run(["import", str(file), "--base", str(llama), "--out", str(tmp_path / "o"), *flags])
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("config", "tensor", "message"),
    [
        ({"fine_tune_type": "dora"}, None, "fine_tune_type is 'dora'"),
        ({"lora_parameters": {"scale": None}}, None, "lora_parameters.scale is None"),
        ({"lora_parameters": {"rank": 5}}, None, "says that their rank is 5"),
        ({}, "m", "a DoRA magnitude"),
    ],
)
def test_what_is_wrong_in_mlx_lms_folder_is_named(llama, tmp_path, capsys, config, tensor, message):
    tensors = {f"{Q}.lora_a": drawn(48, 4), f"{Q}.lora_b": drawn(4, 48)}
    if tensor:
        tensors[f"{Q}.{tensor}"] = drawn(48)
    folder = mlx_folder(tmp_path / "m", tensors, **config)
    assert run(["import", str(folder), "--base", str(llama), "--out", str(tmp_path / "o")]) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_neither_and_one_of_peft(llama, tmp_path, capsys):
    (tmp_path / "x.txt").write_text("x")
    run(["import", str(tmp_path / "x.txt"), "--base", str(llama), "--out", str(tmp_path / "o")])
    assert "--format" in capsys.readouterr().err
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "adapter_model.safetensors").write_text("x")
    run(["import", str(tmp_path / "p"), "--base", str(llama), "--out", str(tmp_path / "o")])
    assert "lorakit reads as it is" in capsys.readouterr().err
