"""peft's target_parameters and lorakit's pairs on experts: files read both ways, with equal logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from lorakit.adapters import load_adapter, save_adapter
from lorakit.adapters.info import read_adapter
from lorakit.adapters.pairs import read_stored, write_stored
from lorakit.errors import AdapterError
from lorakit.lora import LoraSpec, attach, lora_layers
from mixtures import MIXTURES, mixture, rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # peft 0.21 looks for the keys among modules, and finds them among parameters all the same.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:target_modules=.* were set but no:RuntimeWarning"),
]
# peft 0.21 cannot run DBRX's: the module around them reads them, and peft's wrapper has them not.
READ_BY_PEFT = [family for family in MIXTURES if family != "dbrx"]
NAMES = ["gate_up_proj", "down_proj"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([rows()[1]])).logits


def adapted(family: str, **spec: Any) -> Any:
    options: dict[str, Any] = {"rank": 2, "target_parameters": ("experts",), **spec}
    model = attach(mixture(family), LoraSpec(**options), seed=1)
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(model).values():
        layer.B.data.copy_(torch.empty(layer.B.shape).normal_(0, 0.3, generator=generator))
    return model


@pytest.mark.parametrize("family", READ_BY_PEFT)
@pytest.mark.parametrize("attention", [True, False])
def test_peft_reads_what_lorakit_saves(family: str, attention: bool, tmp_path: Path) -> None:
    targets = ("q_proj",) if attention else ()
    model = adapted(family, targets=targets, rank_pattern={"down_proj": 3}, rslora=attention)
    expected = logits(model)
    assert float((expected - logits(mixture(family))).abs().max()) > 0.05
    save_adapter(model, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(mixture(family), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(theirs), expected, atol=1e-5, rtol=1e-4)
    again = mixture(family)
    load_adapter(again, tmp_path / "adapter")
    torch.testing.assert_close(logits(again), expected, atol=0, rtol=0)


@pytest.mark.parametrize("family", READ_BY_PEFT)
def test_lorakit_reads_what_peft_saves(family: str, tmp_path: Path) -> None:
    config = LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["q_proj"],
        target_parameters=NAMES,
        rank_pattern={"down_proj": 3},
        alpha_pattern={"gate_up_proj": 5},
    )
    theirs = get_peft_model(mixture(family), config)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    theirs.save_pretrained(str(tmp_path / "adapter"))
    ours = mixture(family)
    info = load_adapter(ours, tmp_path / "adapter")
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-5, rtol=1e-4)
    assert sum(path.rsplit(".", 1)[-1] in NAMES for path in info.paths) >= 2
    # Read without a model, and written again: the same tensors under the same names.
    stored = read_stored(tmp_path / "adapter")
    assert stored.pairs.keys() == set(info.paths)
    assert {p: x.rank for p, x in stored.pairs.items()} == dict(info.ranks)
    assert read_adapter(tmp_path / "adapter").trainable_parameters == info.trainable_parameters
    write_stored(tmp_path / "again", stored)
    again = mixture(family)
    load_adapter(again, tmp_path / "again")
    assert torch.equal(logits(again), logits(ours))
    for path, pair in stored.pairs.items():
        layer = lora_layers(ours)[path]
        delta = layer.delta().mT if layer.geometry.swapped else layer.delta()
        torch.testing.assert_close(pair.delta().view(delta.shape), delta.detach())


def test_a_lost_pair_of_experts_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_adapter(adapted("mixtral", targets=("q_proj",)), tmp_path / "adapter")
    (tmp_path / "adapter" / "lorakit.json").unlink()
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(str(file))
    kept = {name: x for name, x in tensors.items() if "layers.1.mlp.experts.lora" not in name}
    assert len(kept) == len(tensors) - 2
    save_file(kept, str(file))
    with pytest.raises(AdapterError, match=r"experts|down_proj"):
        load_adapter(mixture("mixtral"), tmp_path / "adapter")


def test_some_blocks_alone_are_named_in_full(tmp_path: Path) -> None:
    model = adapted("mixtral", targets=("q_proj",), layers="1")
    save_adapter(model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_parameters"] == [
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.experts.down_proj",
    ]
    theirs = PeftModel.from_pretrained(mixture("mixtral"), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-5, rtol=1e-4)


def test_an_adapter_that_peft_cannot_run_comes_back_here(tmp_path: Path) -> None:
    model = adapted("dbrx", targets=("Wqkv",), rank_pattern={"w2": 3})
    save_adapter(model, tmp_path / "adapter")
    again = mixture("dbrx")
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))
