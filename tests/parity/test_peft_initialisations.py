"""Initialisations as peft 0.21 has them: A and B at step 0, and adapters that cross both ways."""

import copy
import json

import peft
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lorakit.adapters import load_adapter, save_adapter
from lorakit.lora import LoraSpec, attach, lora_layers

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    # peft reads an attribute that transformers 5 has renamed.
    pytest.mark.filterwarnings("ignore:.*changes the base weights of the model:UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]

IDS = torch.tensor([[1, 5, 9, 2, 60, 33, 0], [7, 7, 8, 63, 4, 3, 12]])
TARGETS = ["q_proj", "up_proj", "down_proj"]


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(0)
    size = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 16}
    config = GPT2Config(**size, initializer_range=0.2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def theirs(base, init, targets, **more):
    config = {"r": 4, "lora_alpha": 6.0, "target_modules": targets, "task_type": "CAUSAL_LM"}
    return peft.get_peft_model(
        base, peft.LoraConfig(**{**config, **more}, init_lora_weights=init)
    ).eval()


def pairs_of(model):
    """A and B of peft's layers by path."""
    return {
        path.removeprefix("base_model.model."): (
            module.lora_A["default"].weight.detach(),
            module.lora_B["default"].weight.detach(),
        )
        for path, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    ("base", "init", "targets"),
    [
        (llama, "pissa", TARGETS),
        (llama, "olora", TARGETS),
        (llama, "mica", TARGETS),
        (gpt2, "pissa", ["c_attn", "c_fc"]),
        (gpt2, "mica", ["c_attn", "c_fc"]),
    ],
)
def test_a_and_b_begin_as_pefts(base, init, targets, rslora):
    model = attach(
        base(), LoraSpec(rank=4, alpha=6.0, rslora=rslora, targets=tuple(targets), init=init)
    )
    other = pairs_of(theirs(base(), init, targets, use_rslora=rslora))
    layers = lora_layers(model)
    assert set(layers) == set(other)
    assert layers
    for path, (A, B) in other.items():
        ours = layers[path]
        assert ours.scale == pytest.approx(6.0 / (2.0 if rslora else 4.0))
        # A singular vector's sign is free; the products have none, and neither have absolute values.
        assert torch.allclose(ours.A[:4].abs(), A.abs(), atol=2e-5)
        assert torch.allclose(ours.B[:, :4].abs(), B.abs(), atol=2e-5)
        assert torch.allclose(ours.B[:, :4] @ ours.A[:4], B @ A, atol=2e-5)


def trained(tensors, seed):
    """The tensors moved away from where they began."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors:
            tensor += 0.05 * torch.randn(tensor.shape, generator=g)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_4", "orthogonal", "mica"])
def test_peft_answers_alike_with_what_we_save(tmp_path, init, dora):
    more = {"rank_pattern": {"down_proj": 6}, "dora": dora}
    spec = LoraSpec(rank=4, alpha=6.0, targets=tuple(TARGETS), init=init, **more)
    start = logits(attach(llama(), spec))
    assert torch.allclose(start, logits(llama()), rtol=0, atol=1e-5)
    model = attach(llama(), spec)
    held = 2 if spec.initialisation.splits else 1
    for number, layer in enumerate(lora_layers(model).values()):
        rank = layer.target.trained_rank
        trained([layer.A[:rank], layer.B[:, :rank]], number)
    expected = logits(model)
    assert not torch.allclose(expected, logits(llama()), atol=1e-2)
    save_adapter(model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4 * held, 6 * held)
    assert config["init_lora_weights"] is True
    assert config["rank_pattern"] == {"down_proj": 6 * held}
    other = peft.PeftModel.from_pretrained(llama(), tmp_path / "adapter")
    assert torch.allclose(logits(other), expected, atol=1e-4)
    again = llama()
    info = load_adapter(again, tmp_path / "adapter")
    assert torch.allclose(logits(again), expected, atol=1e-5)
    assert info.spec.init == "kaiming"
    assert info.spec.rank == 4 * held


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_peft_converts_is_read(tmp_path, init, rslora):
    model = theirs(llama(), init, TARGETS, use_rslora=rslora)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = init
    trained([x for x in model.parameters() if x.requires_grad], 3)
    model.save_pretrained(
        tmp_path / "adapter", path_initial_model_for_weight_conversion=tmp_path / "initial"
    )
    ours = llama()
    load_adapter(ours, tmp_path / "adapter")
    assert torch.allclose(logits(ours), logits(model), atol=1e-4)
    # And it is what we save of the same numbers.
    spec = LoraSpec(rank=4, alpha=6.0, rslora=rslora, targets=tuple(TARGETS), init=init)
    own = lora_layers(attach(llama(), spec))
    for path, layer in lora_layers(ours).items():
        assert layer.A.shape == own[path].A.shape
        assert layer.scale == pytest.approx(own[path].scale)
        assert torch.allclose(layer.A[4:].abs(), own[path].A[4:].abs(), atol=2e-5)
        assert torch.allclose(layer.B[:, 4:].abs(), own[path].B[:, 4:].abs(), atol=2e-5)


def test_a_mica_adapter_of_peft_is_plain_lora(tmp_path):
    model = theirs(llama(), "mica", TARGETS)
    trained([x for x in model.parameters() if x.requires_grad], 3)
    model.save_pretrained(tmp_path / "adapter")
    expected, ours = logits(model), llama()
    load_adapter(ours, tmp_path / "adapter")
    assert torch.allclose(logits(ours), expected, atol=1e-5)
    assert not torch.allclose(expected, logits(llama()), atol=1e-2)


def test_peft_counts_what_mica_trains_alike():
    spec = LoraSpec(rank=4, targets=tuple(TARGETS), init="mica")
    model = attach(llama(), spec)
    ours = sum(layer.target.trainable for layer in lora_layers(model).values())
    other = theirs(llama(), "mica", TARGETS)
    assert ours == other.get_nb_trainable_parameters()[0]


def test_the_base_of_peft_is_changed_and_ours_is_not():
    """What the docs say of peft: pissa in place changes the weights, so the file alone is no adapter."""
    base = llama()
    kept = copy.deepcopy(base.state_dict())
    theirs(base, "pissa", TARGETS)
    changed = [p for p, m in base.named_modules() if hasattr(m, "lora_A")]
    assert changed
    for path in changed:
        weight = base.get_submodule(path).base_layer.weight
        assert not torch.allclose(weight, kept[f"{path}.weight"], atol=1e-3)
