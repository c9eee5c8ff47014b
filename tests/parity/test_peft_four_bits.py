"""An adapter trained beside our NF4 base on peft's own NF4 model of bitsandbytes, and the other way round."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from families import tiny, tokenizer
from lorakit.adapters import load_adapter, save_adapter
from lorakit.lora import LoraSpec, attach
from lorakit.models import load_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
REASON = "bitsandbytes is not installed: pip install 'lorakit[dev]' has it on Linux x86"
IDS = torch.arange(5, 29)[None]


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    # bitsandbytes' layers repack their weights for inference only in multiples of 32 outputs.
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_attention_heads": 4}
    tiny("llama", **sizes).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def theirs(base):
    """Our adapter's base as transformers packs it: the same format, by bitsandbytes."""
    pytest.importorskip("bitsandbytes", reason=REASON)
    pytest.importorskip("accelerate")
    from transformers import BitsAndBytesConfig

    packed = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return AutoModelForCausalLM.from_pretrained(
        base, quantization_config=packed, dtype=torch.float32, device_map={"": "cpu"}
    )


def ours(base):
    return load_model(str(base), dtype="float32", base_dtype="nf4", device="cpu")[0]


def logits(model):
    with (
        torch.no_grad()
    ):  # in training mode, in which bitsandbytes does not round to bfloat16 either
        return model.train()(input_ids=IDS, use_cache=False).logits


def assert_same(one, other, full):
    """Within a twentieth of what the packing itself does to the logits."""
    assert (one - other).abs().max() < 0.05 * (one - full).abs().max()


def trained(model, named):
    generator = torch.Generator().manual_seed(3)
    for name, parameter in named(model):
        if "lora_B" in name or name.endswith(".B"):
            parameter.data.normal_(std=0.2, generator=generator)
    return model


def test_peft_computes_the_same(base, theirs, tmp_path):
    from peft import PeftModel

    model = trained(attach(ours(base), LoraSpec(rank=4)), lambda m: m.named_parameters())
    save_adapter(model, tmp_path / "adapter")
    full = load_model(str(base), dtype="float32", device="cpu")[0]
    load_adapter(full, tmp_path / "adapter")
    assert_same(
        logits(PeftModel.from_pretrained(theirs, tmp_path / "adapter")), logits(model), logits(full)
    )


def test_we_compute_the_same(base, theirs, tmp_path):
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "down_proj"]
    model = get_peft_model(theirs, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    trained(model, lambda m: m.named_parameters())
    model.save_pretrained(tmp_path / "adapter")
    mine, full = ours(base), load_model(str(base), dtype="float32", device="cpu")[0]
    for each in (mine, full):
        load_adapter(each, tmp_path / "adapter")
    assert_same(logits(model), logits(mine), logits(full))
