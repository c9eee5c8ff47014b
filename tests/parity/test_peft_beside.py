"""What peft trains beside the pairs: read, merged, saved and trained as peft does.

peft is the oracle: the same logits both ways, and the same gradients.
"""

import copy

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import MontecloraConfig, VeloraConfig
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from families import tiny
from lorakit.adapters import load_adapter, read_adapter, save_adapter
from lorakit.adapters.pairs import read_stored, write_stored
from lorakit.errors import AdapterError, ConfigError, TargetError
from lorakit.lora import LoraSpec, attach, detach, plan
from lorakit.lora.changing import changes_of
from lorakit.merging import merged_model
from lorakit.training import TrainSpec
from lorakit.training.optimizer import FlatAdamW

pytestmark = [
    # peft reads an attribute that transformers 5 has renamed.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # What peft says of ties, of biases that it cannot merge, and of their shape in the file.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
IDS = torch.tensor([[1, 3, 7, 2, 8, 3, 49], [5, 5, 0, 7, 9, 30, 12]])
CASES = {
    "every bias": {"bias": "all"},
    "biases beside pairs": {"bias": "lora_only"},
    "biases of pairs": {"lora_bias": True},
    # By the end of the text: input_layernorm and post_attention_layernorm too.
    "norms and head": {"modules_to_save": ["norm", "lm_head"]},
    "embedding whole": {"modules_to_save": ["embed_tokens"]},
    "embedding and head whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding, ties kept": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "head, ties kept": {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    "MLPs whole": {"modules_to_save": ["mlp"]},
    "rows": {"trainable_token_indices": [3, 7]},
    "rows, ties kept": {"trainable_token_indices": [3, 7], "ensure_weight_tying": True},
    "rows by name": {"trainable_token_indices": {"embed_tokens": [3, 7]}},
    "rows of both": {"trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [3, 7]}},
    "other rows of both": {"trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [3, 8]}},
    "rows of the head": {"trainable_token_indices": {"lm_head": [3, 7]}},
    "all at once": {
        "modules_to_save": ["norm"],
        "trainable_token_indices": [1, 2],
        "bias": "all",
        "lora_bias": True,
    },
}
IN_TRAINING = {
    "VeLoRA": {"velora_config": VeloraConfig()},
    "MonteCLoRA": {"monteclora_config": MontecloraConfig()},
    "MiCA": {"init_lora_weights": "mica"},
}
BASES = {"untied": (False, False), "tied": (True, False), "tied, biases": (True, True)}


def base(which="untied"):
    tied, bias = BASES[which]
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = LlamaConfig(
        **sizes,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        attention_bias=bias,
    )
    return LlamaForCausalLM(config).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def theirs(which="untied", **options):
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | options
    model = get_peft_model(base(which), LoraConfig(**config)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def close(a, b):
    return float((a - b).abs().max()) < 1e-5


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.mark.parametrize("which", BASES)
class TestWithPeft:
    def test_read_merged_and_taken_out(self, which, case, tmp_path):
        peft_model = theirs(which, **case)
        peft_model.save_pretrained(tmp_path / "a")
        model = base(which)
        own = {n: p.detach().clone() for n, p in model.named_parameters(remove_duplicate=False)}
        plain = logits(model)
        load_adapter(model, tmp_path / "a")
        assert not close(logits(model), plain)
        assert close(logits(model), logits(peft_model))
        assert close(logits(merged_model(model)), logits(peft_model))
        detach(model)
        kept = dict(model.named_parameters(remove_duplicate=False))
        assert all(torch.equal(kept[name], tensor) for name, tensor in own.items())
        assert torch.equal(logits(model), plain)

    def test_saved_from_the_model_and_from_the_file(self, which, case, tmp_path):
        peft_model = theirs(which, **case)
        peft_model.save_pretrained(tmp_path / "a")
        model = base(which)
        load_adapter(model, tmp_path / "a")
        save_adapter(model, tmp_path / "ours")
        write_stored(tmp_path / "again", read_stored(tmp_path / "a"))
        for folder in ("ours", "again"):
            loaded = PeftModel.from_pretrained(base(which), tmp_path / folder).eval()
            assert close(logits(loaded), logits(peft_model)), folder
            again = base(which)
            load_adapter(again, tmp_path / folder)
            assert close(logits(again), logits(peft_model)), folder
            names = load_file(tmp_path / folder / "adapter_model.safetensors").keys()
            assert names == load_file(tmp_path / "a" / "adapter_model.safetensors").keys()

    def test_gradients(self, which, case, tmp_path):
        """Of every value beside the pairs, and of the pairs; the base gets none."""
        peft_model = theirs(which, **case)
        peft_model.save_pretrained(tmp_path / "a")
        model = base(which)
        load_adapter(model, tmp_path / "a", trainable=True)
        for each in (model, peft_model):
            each(IDS, labels=IDS).loss.backward()
        expected = sum(
            float(p.grad.square().sum())
            for p in peft_model.parameters()
            if p.requires_grad and p.grad is not None
        )
        found = 0.0
        for parameter in model.parameters():
            if parameter.requires_grad:
                grad = parameter.grad
                rows = getattr(parameter, "trained_rows", None)
                found += float((grad if rows is None else grad[rows]).square().sum())
        found += sum(
            float(change.parameter.grad.square().sum()) * (change.what.scale**2 - 1)
            for change in changes_of(model)
            if change.what.kind == "added"
        )
        if case.get("lora_bias") and case.get("bias") and BASES[which][1]:
            return  # peft moves both biases of one layer; here their sum is one parameter
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", IN_TRAINING)
def test_what_matters_in_training_alone_is_plain_lora(name, tmp_path):
    peft_model = theirs(**IN_TRAINING[name])
    peft_model.save_pretrained(tmp_path / "a")
    model = base()
    info = load_adapter(model, tmp_path / "a")
    assert close(logits(model), logits(peft_model))
    assert close(logits(merged_model(model)), logits(peft_model))
    notes = "read as plain LoRA" in " ".join(info.notes)
    assert notes == (name != "MiCA")
    assert info.trainable_parameters == read_adapter(tmp_path / "a").trainable_parameters == 512
    write_stored(tmp_path / "plain", read_stored(tmp_path / "a"))
    loaded = PeftModel.from_pretrained(base(), tmp_path / "plain").eval()
    assert type(loaded.peft_config["default"]) is peft.LoraConfig
    assert close(logits(loaded), logits(peft_model))


class TestTrained:
    """Attached here, trained by the optimizer here, loaded by peft."""

    SPECS = (
        {"modules_to_save": ("norm", "lm_head")},
        {"token_rows": {"embed_tokens": (3, 7)}},
        {"token_rows": {"": (3, 7)}},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
    )

    @pytest.mark.parametrize("which", BASES)
    @pytest.mark.parametrize("spec", SPECS, ids=str)
    def test_nothing_changes_at_the_start_and_peft_loads_the_end(self, which, spec, tmp_path):
        model = base(which)
        own = logits(model)
        frozen = copy.deepcopy(model)
        attach(model, LoraSpec(rank=4, targets=("q_proj", "v_proj"), **spec))
        assert close(logits(model), own)
        optimizer = FlatAdamW(model.parameters(), TrainSpec(weight_decay=0.1))
        for _ in range(3):
            model(IDS, labels=IDS).loss.backward()
            optimizer.step(1e-2, divide_by=1.0, clip=0.0)
        assert not close(logits(model), own)
        save_adapter(model, tmp_path / "a")
        loaded = PeftModel.from_pretrained(base(which), tmp_path / "a").eval()
        assert close(logits(loaded), logits(model))
        for change in changes_of(model):
            if change.what.kind == "rows":  # no other row has moved, by decay or otherwise
                others = [i for i in range(50) if i not in change.what.rows]
                weight = frozen.get_parameter(change.what.names[0])
                assert torch.equal(change.parameter[others], weight[others])
                assert not torch.equal(change.parameter[[3, 7]], weight[[3, 7]])

    def test_rows_move_as_a_parameter_of_their_own(self):
        """torch's AdamW on the rows alone is the oracle."""
        model, spec = base("tied"), TrainSpec(weight_decay=0.1)
        attach(model, LoraSpec(rank=4, targets=("q_proj",), token_rows={"": (3, 7)}))
        for path, module in model.named_modules():  # the pairs stay where they are
            if path.endswith("q_proj"):
                module.requires_grad_(False)
        rows = model.model.embed_tokens.weight.detach()[[3, 7]].clone().requires_grad_()
        oracle = torch.optim.AdamW(
            [rows], lr=1e-2, weight_decay=0.1, betas=(spec.beta1, spec.beta2)
        )
        optimizer = FlatAdamW(model.parameters(), spec)
        assert len(optimizer.flat) == 2 * 16
        for _ in range(3):
            model(IDS, labels=IDS).loss.backward()
            rows.grad = model.model.embed_tokens.weight.grad[[3, 7]].clone()
            oracle.step()
            optimizer.step(1e-2, divide_by=1.0, clip=0.0)
        assert close(model.model.embed_tokens.weight[[3, 7]], rows)
        state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
        model(IDS, labels=IDS).loss.backward()
        optimizer.step(1e-2, divide_by=1.0, clip=0.0)
        optimizer.load_state(state)
        assert close(model.model.embed_tokens.weight[[3, 7]], rows)


class TestRefused:
    def test_a_tensor_that_the_configuration_names_is_missing(self, tmp_path):
        theirs(modules_to_save=["norm"]).save_pretrained(tmp_path / "a")
        stored = read_stored(tmp_path / "a")
        del stored.beside["base_model.model.model.norm.weight"]
        write_stored(tmp_path / "b", stored)
        with pytest.raises(AdapterError, match=r"lacks base_model.model.model.norm.weight"):
            load_adapter(base(), tmp_path / "b")

    def test_one_pair_for_tied_layers(self, tmp_path):
        options = {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}
        theirs("tied", **options).save_pretrained(tmp_path / "a")
        with pytest.raises(AdapterError, match=r"has a pair for lm_head, which .* does not name"):
            load_adapter(base("tied"), tmp_path / "a")

    def test_another_vocabulary(self, tmp_path):
        theirs(modules_to_save=["lm_head"]).save_pretrained(tmp_path / "a")
        model = base()
        model.resize_token_embeddings(60)
        with pytest.raises(
            AdapterError, match=r"is \(50, 16\), and in this model it is \(60, 16\)"
        ):
            load_adapter(model, tmp_path / "a")

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ({"modules_to_save": ("lm_haed",)}, "matches no module; did you mean 'lm_head'"),
            ({"modules_to_save": ("mlp",), "targets": ("up_proj",)}, "trained whole or by a pair"),
            ({"token_rows": {"": (50,)}}, "row 50 of model.embed_tokens, which has 50 rows"),
            ({"token_rows": {"embed": (1,)}}, "matches no embedding"),
            ({"token_rows": {"": (1, 1)}}, "a row of model.embed_tokens twice"),
            (
                {"token_rows": {"": (1,)}, "targets": ("embed_tokens",)},
                "by its rows or by a pair",
            ),
        ],
    )
    def test_specs(self, spec, message):
        with pytest.raises(TargetError, match=message):
            plan(base(), LoraSpec(**({"rank": 4, "targets": ("q_proj",)} | spec)))

    def test_a_bias_of_another_kind(self):
        with pytest.raises(ConfigError, match="bias must be 'none', 'all' or 'lora_only'"):
            LoraSpec(bias="some")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pairs_on_an_embedding_that_scales(dtype, tmp_path):
    """Gemma's looks up sqrt(dim) times the row: the pair is scaled too, and merges."""
    model = tiny("gemma3_text").to(dtype)
    peft_model = get_peft_model(
        tiny("gemma3_text").to(dtype),
        LoraConfig(r=4, lora_alpha=8, target_modules=["embed_tokens"]),
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    peft_model.save_pretrained(tmp_path / "a")
    load_adapter(model, tmp_path / "a")
    close_to = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    )
    torch.testing.assert_close(logits(model), logits(peft_model), **close_to)
    torch.testing.assert_close(logits(merged_model(model)), logits(peft_model), **close_to)
    looked_up = merged_model(model).model.embed_tokens(IDS)
    torch.testing.assert_close(model.model.embed_tokens(IDS), looked_up, rtol=2e-2, atol=2e-2)
