"""What peft's own saving, combining and merging turn into something else: the linter says so, and the reader."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import MontecloraConfig, VeloraConfig

from adapter_models import edit_config
from families import tiny
from lorakit.adapters import load_adapter, read_adapter
from lorakit.adapters.export import lint
from lorakit.adapters.peft_habits import counts_last_number

IDS = torch.tensor([[5, 9, 2, 60, 33]])
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def trained(model, **options):
    model = get_peft_model(model, LoraConfig(**({"r": 4, "lora_alpha": 8} | options))).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def of_peft(folder, model=None):
    return {(f.verdict, f.what): f.why for f in lint(folder, None, model) if f.runtime == "peft"}


def test_overlapping_alphas_that_saving_turns_around(tmp_path):
    keys = {"q_proj": 3, ".*_proj": 30}  # q_proj counts while it trains, the other one afterwards
    model = trained(tiny("llama"), target_modules=["q_proj", "v_proj"], alpha_pattern=keys)
    model.save_pretrained(tmp_path / "a")
    again = PeftModel.from_pretrained(tiny("llama"), tmp_path / "a").eval()
    assert float((model(IDS).logits - again(IDS).logits).abs().max()) > 1e-2
    ours = tiny("llama")
    load_adapter(ours, tmp_path / "a")
    torch.testing.assert_close(ours(IDS).logits, again(IDS).logits, rtol=1e-5, atol=1e-5)
    why = of_peft(tmp_path / "a")["mis-scales", "alpha_pattern"]
    assert "'.*_proj' and 'q_proj' both mean model.layers.0.self_attn.q_proj" in why
    even = trained(tiny("llama"), target_modules=["q_proj", "v_proj"], alpha_pattern={"q_proj": 3})
    even.save_pretrained(tmp_path / "b")
    assert not of_peft(tmp_path / "b")


def test_ranks_that_add_weighted_adapter_loses(tmp_path):
    options = {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}}
    model = trained(tiny("llama"), **options)
    model.add_adapter("other", LoraConfig(r=4, lora_alpha=8, **options))
    model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "sum", combination_type="linear")
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(tiny("llama"), tmp_path / "sum")
    assert "leaves rank_pattern out" in of_peft(tmp_path / "sum")["refuses", "rank_pattern"]


@pytest.mark.parametrize("tied", [True, False])
def test_merging_into_tied_weights(tied, tmp_path):
    base = tiny("llama", tie_word_embeddings=tied)
    model = trained(base, target_modules=["embed_tokens"])
    model.save_pretrained(tmp_path / "a")
    expected = model(IDS).logits.detach()
    merged = model.merge_and_unload()(IDS).logits
    assert (float((merged - expected).abs().max()) > 1e-2) == tied
    found = of_peft(tmp_path / "a", tiny("llama", tie_word_embeddings=tied))
    assert (("needs", "model.embed_tokens") in found) == tied


@pytest.mark.parametrize("version", ["0.19.1", "0.21.2", None])
def test_which_number_layers_to_transform_counts(version, tmp_path):
    """Nested numbers: of `layers.L.experts.E` the last is E. Old files mean it, by their version."""
    from lorakit.adapters.peft_config import read_config

    trained(tiny("llama"), target_modules=["q_proj"]).save_pretrained(tmp_path / "a")
    edit_config(tmp_path / "a", layers_to_transform=[1], peft_version=version or "DELETE")
    config = read_config(tmp_path / "a")
    by_last, by_first = "m.layers.0.experts.1.q_proj", "m.layers.1.experts.0.q_proj"
    assert config.selects(by_last) == (version != "0.21.2")
    assert config.selects(by_first) == (version != "0.19.1")
    assert counts_last_number(version) == {None: None, "0.19.1": True, "0.21.2": False}[version]


def test_a_plain_folder_has_none(tmp_path):
    trained(tiny("llama"), target_modules=["q_proj"]).save_pretrained(tmp_path / "a")
    assert not of_peft(tmp_path / "a", tiny("llama"))
    assert read_adapter(tmp_path / "a").ranks


@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({"modules_to_save": ["norm"]}, "vllm"),
        ({"trainable_token_indices": [3]}, "vllm"),
        ({"lora_bias": True}, "vllm"),
        ({"velora_config": VeloraConfig()}, "llama.cpp"),
        ({"monteclora_config": MontecloraConfig()}, "llama.cpp"),
    ],
)
def test_what_lorakit_reads_is_no_finding_of_it(options, other, tmp_path):
    """And the others refuse it where they do, for its own name."""
    trained(tiny("llama"), target_modules=["q_proj"], **options).save_pretrained(tmp_path / "a")
    by_runtime = [finding.runtime for finding in lint(tmp_path / "a")]
    assert "lorakit" not in by_runtime
    assert other in by_runtime
