"""The ways that peft has too, against its add_weighted_adapter, delta by delta."""

import json

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lorakit.adapters import load_adapter
from lorakit.adapters.combine import combine
from lorakit.adapters.pairs import read_stored, write_stored
from lorakit.adapters.parents import Part
from lorakit.adapters.specs import CombineSpec
from lorakit.lora import lora_layers

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The density 1.0 is greater:UserWarning"),
]
# peft's ways in float32: the products and the SVD depart by their rounding.
CLOSE = {"rtol": 0, "atol": 2e-5}


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).eval()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A peft model with two adapters, and their folders."""
    place = tmp_path_factory.mktemp("peft")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(base(), config, adapter_name="one")
    model.add_adapter("two", config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.3)
    model.save_pretrained(place, selected_adapters=["one", "two"])
    return model, place


def deltas(model, name):
    return {
        path.removeprefix("base_model.model."): module.get_delta_weight(name)
        for path, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer) and name in module.r
    }


@pytest.mark.parametrize(
    ("their_way", "ours", "weights", "extra"),
    [
        ("linear", CombineSpec(how="factors"), (0.7, -0.3), {}),
        ("cat", CombineSpec(how="cat"), (0.7, -0.3), {}),
        ("cat", CombineSpec(how="linear"), (0.7, -0.3), {}),
        ("svd", CombineSpec(how="svd", rank=3), (0.7, -0.3), {"svd_rank": 3}),
        # peft elects signs before it weighs: the same where all weights are.
        (
            "ties_svd",
            CombineSpec(how="ties", rank=5, density=0.3),
            (0.8, 0.8),
            {"svd_rank": 5, "density": 0.3},
        ),
        (
            "dare_linear_svd",
            CombineSpec(how="dare", rank=5, density=1.0),
            (0.7, -0.3),
            {"svd_rank": 5, "density": 1.0},
        ),
        (
            "dare_ties_svd",
            CombineSpec(how="dare_ties", rank=5, density=1.0),
            (0.8, 0.8),
            {"svd_rank": 5, "density": 1.0},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_same_updates(theirs, their_way, ours, weights, extra):
    model, place = theirs
    name = f"made {their_way} {ours.how}".replace(" ", "_")
    model.add_weighted_adapter(
        ["one", "two"], list(weights), name, combination_type=their_way, **extra
    )
    parts = [Part(read_stored(place / n), w) for n, w in zip(("one", "two"), weights, strict=True)]
    made = combine(parts, ours).adapter.pairs
    found = deltas(model, name)
    assert found.keys() == made.keys()
    for path, wanted in found.items():
        torch.testing.assert_close(made[path].delta(), wanted, **CLOSE)


def test_peft_loads_the_result(theirs, tmp_path):
    _, place = theirs
    parts = [Part(read_stored(place / "one"), 0.7), Part(read_stored(place / "two"), -0.3)]
    folder = write_stored(tmp_path / "made", combine(parts, CombineSpec(how="cat")).adapter)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (8, 8, {})
    assert config["target_modules"] == ["q_proj", "up_proj"]
    theirs_again = peft.PeftModel.from_pretrained(base(), folder).eval()
    ours = base()
    load_adapter(ours, folder)
    ids = torch.tensor([[1, 5, 9, 2, 60, 33, 0]])
    with torch.no_grad():
        gap = (theirs_again(ids).logits - ours(ids).logits).abs().max()
    assert gap <= 1e-5
    assert len(lora_layers(ours)) == 4
