"""`--base-dtype` from the command line on mixtures of experts and GPT-2: trained, gone on with, generated."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import lorakit as package
from families import saved, tokenizer
from lorakit.kernels.packed.counting import packing_of
from lorakit.lora import LoraSpec
from lorakit.models import empty_model, load_model
from lorakit.models.packable import bytes_unpacked
from mixtures import mixture


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("kinds") / "rows.jsonl"
    file.write_text(
        "".join(
            json.dumps({"prompt": f"{n} + {n}?", "completion": f"{2 * n}."}) + "\n"
            for n in range(24)
        )
    )
    return file


def made(folder: Path, family: str) -> Path:
    if family == "gpt2":
        return saved(folder, "gpt2")
    mixture(family, vocab_size=300).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "gpt2"])
def test_trained_measured_and_generated(
    lorakit: Any, rows: Path, tmp_path: Path, family: str
) -> None:
    base = made(tmp_path / "base", family)
    experts = [] if family == "gpt2" else ["--target-parameters", "experts"]
    said = lorakit(
        *("train", "--model", base, "--data", rows, "--out", tmp_path / "run", "--epochs", 2),
        *("--rank", 4, "--samples", 0, "--dtype", "float32", "--base-dtype", "nf4", *experts),
        *("--learning-rate", "3e-3"),
    )
    assert said.code == 0, said.err
    assert "base in nf4, the rest in float32, on cpu" in said.out
    losses = re.findall(r"held-out loss ([\d.]+) before, ([\d.]+) after", said.out)
    assert float(losses[0][1]) < float(losses[0][0])
    adapter = tmp_path / "run" / "adapter"
    assert json.loads((adapter / "lorakit.json").read_text())["provenance"]["base_dtype"] == "nf4"
    told = lorakit("eval", "--adapter", adapter, "--data", rows, "--metrics", "none")
    assert told.code == 0, told.err
    wrote = lorakit("generate", "--adapter", adapter, "--max-new-tokens", 4, "3 + 3?")
    assert wrote.code == 0, wrote.err
    checked = lorakit("check", "--model", base, "--base-dtype", "nf4", "--dtype", "float32")
    assert checked.code == 0, checked.err
    assert "in nf4, the rest in float32," in checked.out


def test_the_loss_of_a_run_is_that_of_the_dequantized_weights(rows: Path, tmp_path: Path) -> None:
    """The oracle: the same training on a plain model with the weights that the packed one stands for."""
    base = made(tmp_path / "base", "mixtral")
    losses = {}
    for kind in ("packed", "plain"):
        packed, tokens = load_model(str(base), dtype="float32", base_dtype="int8", device="cpu")
        assert packing_of(packed) == "int8"
        model = packed
        if kind == "plain":
            model, _ = load_model(str(base), dtype="float32", device="cpu")
            for path, module in packed.named_modules():
                if hasattr(module, "packed_bytes"):
                    weight = module.weight.detach()
                    own = f"{path}.weight" if isinstance(module, torch.nn.Linear) else path
                    model.get_parameter(own).data = dense(weight)
        package.attach(model, LoraSpec(rank=4, target_parameters=("experts",)))
        result = package.train(model, tokens, str(rows), epochs=1, seed=1)
        losses[kind] = result.train_loss
    assert losses["packed"] == pytest.approx(losses["plain"], rel=1e-5)


def dense(weight: Any) -> torch.Tensor:
    """The numbers of a weight, packed or not."""
    formed: torch.Tensor = weight.formed() if hasattr(weight, "formed") else weight
    return formed.contiguous()


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("mixtral", ("embeddings", "the output head", "routers", "norms and biases")),
        ("dbrx", ("embeddings", "w1", "v1", "w2", "routers")),
        ("gpt2", ("embeddings, which are the output head", "norms and biases")),
    ],
)
def test_check_names_what_stays_in_full_precision(
    lorakit: Any, tmp_path: Path, family: str, words: tuple[str, ...]
) -> None:
    base = made(tmp_path / "base", family)
    outline = empty_model(str(base), dtype="bfloat16")
    kept = bytes_unpacked(outline)
    assert set(words) <= set(kept)
    model, _ = load_model(str(base), dtype="bfloat16", base_dtype="nf4", device="cpu")
    assert sum(kept.values()) == sum(p.numel() * p.element_size() for p in model.parameters())
    said = lorakit("check", "--model", base, "--dtype", "bfloat16", "--base-dtype", "nf4")
    assert said.code == 0, said.err
    (line,) = re.findall(r"in bfloat16 stay: (.*)", said.out)
    assert all(word in line for word in words)
    plain = lorakit("check", "--model", base, "--dtype", "bfloat16")
    assert " stay: " not in plain.out
