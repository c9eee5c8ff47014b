"""Adapters cross between lorakit and peft, both ways, tensor for tensor and logit for logit."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lorakit.adapters import load_adapter, read_adapter, save_adapter
from lorakit.errors import AdapterError
from lorakit.lora import LoraSpec, attach, lora_layers

pytestmark = [
    # peft reads an attribute that transformers 5 has renamed.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # peft corrects fan_in_fan_out by itself; the tests leave it at its default on purpose.
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    # peft keeps a copy of an adapted embedding, and says so.
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]

IDS = torch.tensor([[1, 5, 9, 2, 60, 33, 0], [7, 7, 8, 63, 4, 3, 12]])
IMAGE = torch.linspace(-1, 1, 2 * 3 * 6 * 6).view(2, 3, 6, 6)


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
        )
    ).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=16,
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()


class Picture(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self, dilation: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.second = nn.Conv2d(8, 6, 2, dilation=dilation, bias=False)
        self.out = nn.Linear(6, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.second(torch.relu(self.first(image))))
        return self.out(h.mean((-1, -2)))


def picture() -> nn.Module:
    torch.manual_seed(0)
    return Picture().eval()


@dataclass
class Case:
    """One base, and the same adapter in lorakit's words and in peft's."""

    base: Any
    ours: dict[str, Any]
    theirs: dict[str, Any]
    task: str | None = "CAUSAL_LM"
    input: torch.Tensor = field(default_factory=lambda: IDS)

    def logits(self, model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            out = model(self.input)
        return out if isinstance(out, torch.Tensor) else out.logits

    def peft_config(self) -> peft.LoraConfig:
        return peft.LoraConfig(task_type=self.task, **self.theirs)


CASES = {
    "linear": Case(
        llama,
        {"rank": 4, "alpha": 6.5, "targets": ("q_proj", "down_proj")},
        {"r": 4, "lora_alpha": 6.5, "target_modules": ["q_proj", "down_proj"]},
    ),
    "rsLoRA": Case(
        llama,
        {"rank": 4, "alpha": 6.0, "rslora": True, "targets": ("v_proj",), "init": "gaussian"},
        {
            "r": 4,
            "lora_alpha": 6,
            "use_rslora": True,
            "target_modules": ["v_proj"],
            "init_lora_weights": "gaussian",
        },
    ),
    "patterns": Case(
        llama,
        {
            "rank": 4,
            "targets": ("q_proj", "up_proj", "o_proj"),
            "rank_pattern": {r"^model\.layers\.1\..*": 2, "q_proj": 3},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 5.0, "up_proj": 7.5},
            "dropout": 0.25,
        },
        {
            "r": 4,
            "lora_alpha": 32,
            "target_modules": ["q_proj", "up_proj", "o_proj"],
            "rank_pattern": {r"^model\.layers\.1\..*": 2, "q_proj": 3},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 5, "up_proj": 7.5},
            "lora_dropout": 0.25,
        },
    ),
    "patterns and rsLoRA": Case(
        llama,
        {
            "rank": 4,
            "rslora": True,
            "targets": ("q_proj", "k_proj"),
            "rank_pattern": {"k_proj": 8},
            "alpha_pattern": {"k_proj": 2.0},
        },
        {
            "r": 4,
            "lora_alpha": 32,
            "use_rslora": True,
            "target_modules": ["q_proj", "k_proj"],
            "rank_pattern": {"k_proj": 8},
            "alpha_pattern": {"k_proj": 2},
        },
    ),
    "one layer": Case(
        llama,
        {"rank": 4, "targets": ("layers.1.self_attn.q_proj",)},
        {"r": 4, "lora_alpha": 32, "target_modules": ["model.layers.1.self_attn.q_proj"]},
    ),
    "Conv1D": Case(
        gpt2,
        {"rank": 4, "alpha": 8.0, "targets": ("c_attn", "c_fc")},
        {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_fc"]},
    ),
    "embedding": Case(
        llama,
        {"rank": 4, "alpha": 8.0, "targets": ("embed_tokens", "q_proj")},
        {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "q_proj"]},
    ),
    "output head": Case(
        llama,
        {"rank": 4, "alpha": 8.0, "targets": ("lm_head",)},
        {"r": 4, "lora_alpha": 8, "target_modules": ["lm_head"]},
    ),
    "DoRA": Case(
        llama,
        {"rank": 4, "alpha": 6.0, "dora": True, "targets": ("q_proj", "down_proj", "lm_head")},
        {
            "r": 4,
            "lora_alpha": 6,
            "use_dora": True,
            "target_modules": ["q_proj", "down_proj", "lm_head"],
        },
    ),
    "DoRA and rsLoRA": Case(
        llama,
        {"rank": 4, "alpha": 3.0, "dora": True, "rslora": True, "targets": ("v_proj",)},
        {
            "r": 4,
            "lora_alpha": 3,
            "use_dora": True,
            "use_rslora": True,
            "target_modules": ["v_proj"],
        },
    ),
    "DoRA on Conv1D": Case(
        gpt2,
        {"rank": 4, "alpha": 8.0, "dora": True, "targets": ("c_attn", "c_fc")},
        {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["c_attn", "c_fc"]},
    ),
    "DoRA on an embedding": Case(
        llama,
        {"rank": 4, "alpha": 8.0, "dora": True, "targets": ("embed_tokens", "q_proj")},
        {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
    ),
    "DoRA on Conv2d": Case(
        picture,
        {"rank": 4, "alpha": 8.0, "dora": True, "targets": ("first", "second", "out")},
        {
            "r": 4,
            "lora_alpha": 8,
            "use_dora": True,
            "target_modules": ["first", "second", "out"],
        },
        task=None,
        input=IMAGE,
    ),
    "Conv2d": Case(
        picture,
        {"rank": 4, "alpha": 8.0, "targets": ("first", "second", "out")},
        {"r": 4, "lora_alpha": 8, "target_modules": ["first", "second", "out"]},
        task=None,
        input=IMAGE,
    ),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def randomize(tensors: Any) -> None:
    """Random values in all alike: with B at zero no test here could fail."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in tensors:
            tensor.normal_(0.0, 0.3, generator=g)


def ours(case: Case) -> nn.Module:
    model = attach(case.base(), LoraSpec(**case.ours)).eval()
    randomize(each for layer in lora_layers(model).values() for each in layer.tensors.values())
    return model


def theirs(case: Case) -> Any:
    model = peft.get_peft_model(case.base(), case.peft_config()).eval()
    randomize(p for name, p in model.named_parameters() if "lora_" in name)
    return model


def tensors_of(folder: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {k: (t.dtype, tuple(t.shape), t.numpy().tobytes()) for k, t in found.items()}


def config_of(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "adapter_config.json").read_text())
    # peft writes a set: the order is chance.
    return config | {"target_modules": sorted(config["target_modules"])}


def apart(case: Case, a: nn.Module, b: nn.Module) -> float:
    return (case.logits(a) - case.logits(b)).abs().max().item()


def test_peft_loads_ours(case, tmp_path):
    model = ours(case)
    save_adapter(model, tmp_path / "a")
    loaded = peft.PeftModel.from_pretrained(case.base(), tmp_path / "a").eval()
    assert apart(case, model, case.base()) > 0.01
    assert apart(case, model, loaded) <= 1e-4


def test_we_load_pefts(case, tmp_path):
    model = theirs(case)
    model.save_pretrained(tmp_path / "a")
    ours = case.base()
    load_adapter(ours, tmp_path / "a")
    assert apart(case, model, case.base()) > 0.01
    assert apart(case, model, ours) <= 1e-4


def test_tensors_and_configuration_after_a_round_trip(case, tmp_path):
    theirs(case).save_pretrained(tmp_path / "theirs")
    model = case.base()
    info = load_adapter(model, tmp_path / "theirs")
    save_adapter(model, tmp_path / "ours")
    before, after = tensors_of(tmp_path / "theirs"), tensors_of(tmp_path / "ours")
    # The one tensor that is not carried over: peft's copy of the base's own embedding.
    copies = {name for name in before if name.endswith(".base_layer.weight")}
    assert after == {name: value for name, value in before.items() if name not in copies}
    assert [note.split()[0] for note in info.notes] == sorted(copies)
    expected, written = config_of(tmp_path / "theirs"), config_of(tmp_path / "ours")
    selected = [expected.pop("target_modules"), written.pop("target_modules")]
    last = [sorted({name.rsplit(".", 1)[-1] for name in names}) for names in selected]
    assert last[0] == last[1]
    assert written == expected


def test_what_a_folder_says_of_itself(case, tmp_path):
    model = theirs(case)
    model.save_pretrained(tmp_path / "a")
    info = read_adapter(tmp_path / "a")
    moving = [p for name, p in model.named_parameters() if "lora_" in name]
    assert info.trainable_parameters == sum(p.numel() for p in moving)
    ranks = {
        name.removeprefix("base_model.model."): module.r["default"]
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert dict(info.ranks) == ranks
    assert info.base is info.provenance is None


@pytest.mark.parametrize(
    "narrowed",
    [
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["layers.0.mlp.up_proj"]},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*\.0\..*"},
        {"target_modules": r".*\.1\.self_attn\.(q|k)_proj"},
        {"target_modules": "all-linear"},
    ],
    ids=str,
)
def test_other_ways_to_say_which_modules(narrowed, tmp_path):
    case = Case(llama, {}, {"r": 2, "lora_alpha": 4, **narrowed})
    model = theirs(case)
    model.save_pretrained(tmp_path / "theirs")
    ours = case.base()
    info = load_adapter(ours, tmp_path / "theirs")
    assert apart(case, model, ours) <= 1e-4
    assert set(read_adapter(tmp_path / "theirs").paths) == set(info.paths)
    save_adapter(ours, tmp_path / "ours")
    assert tensors_of(tmp_path / "ours") == tensors_of(tmp_path / "theirs")
    again = peft.PeftModel.from_pretrained(case.base(), tmp_path / "ours").eval()
    assert apart(case, model, again) <= 1e-4


def test_patterns_whose_order_matters_survive_the_sorted_file(tmp_path):
    # In the spec the first key hits layer 0; sorted by name, as peft writes JSON, the other would.
    case = Case(
        llama,
        {
            "rank": 4,
            "targets": ("q_proj",),
            "rank_pattern": {r"self_attn\.q_proj": 2, r"layers\.0.*": 3},
            "alpha_pattern": {"q_proj": 3.0, r"layers\.0.*": 9.0},
        },
        {},
    )
    model = ours(case)
    assert {layer.rank for layer in lora_layers(model).values()} == {2}
    save_adapter(model, tmp_path / "a")
    loaded = peft.PeftModel.from_pretrained(case.base(), tmp_path / "a").eval()
    assert apart(case, model, loaded) <= 1e-4
    again = case.base()
    load_adapter(again, tmp_path / "a")
    assert apart(case, model, again) == 0.0


def test_peft_trains_on_from_ours(tmp_path):
    case = CASES["linear"]
    save_adapter(ours(case), tmp_path / "a")
    model = peft.PeftModel.from_pretrained(case.base(), tmp_path / "a", is_trainable=True)
    model(IDS, labels=IDS).loss.backward()
    grads = [p.grad for name, p in model.named_parameters() if "lora_" in name]
    assert len(grads) == 8
    assert all(grad is not None and grad.any() for grad in grads)


def test_every_key_that_peft_knows_is_written(tmp_path):
    save_adapter(ours(CASES["linear"]), tmp_path / "a")
    written = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    known = peft.LoraConfig(target_modules=["q_proj"]).to_dict()
    # peft adds its own version while it writes.
    assert written.keys() == known.keys() | {"peft_version"}


class TestDilation:
    """peft 0.21 runs A without the base's dilation, so such a pair is not what it merges to."""

    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["second"])

    def dilated(self):
        torch.manual_seed(0)
        return Picture(dilation=2).eval()

    def test_pefts_is_refused(self, tmp_path):
        model = peft.get_peft_model(self.dilated(), self.config).eval()
        randomize(p for name, p in model.named_parameters() if "lora_" in name)
        # The reason, seen in peft itself: the merged model is not the adapted one.
        unmerged = model(IMAGE)
        model.merge_adapter()
        assert (model(IMAGE) - unmerged).abs().max() > 0.01
        model.unmerge_adapter()
        model.save_pretrained(tmp_path / "a")
        with pytest.raises(AdapterError, match="second is a convolution with dilation") as caught:
            load_adapter(self.dilated(), tmp_path / "a")
        assert "peft leaves the dilation out" in str(caught.value)

    def test_ours_comes_back_and_its_card_warns(self, tmp_path):
        model = attach(self.dilated(), LoraSpec(rank=4, targets=("second",)))
        randomize(half for layer in lora_layers(model).values() for half in (layer.A, layer.B))
        save_adapter(model, tmp_path / "a")
        again = self.dilated()
        load_adapter(again, tmp_path / "a")
        assert torch.equal(again(IMAGE), model(IMAGE))
        assert "peft computes second otherwise" in (tmp_path / "a" / "README.md").read_text()


REFUSED = {
    "init_lora_weights": {"init_lora_weights": "pissa"},
    "layer_replication": {"layer_replication": [(0, 2), (1, 2)]},
}


@pytest.mark.parametrize("key", list(REFUSED))
def test_variants_that_peft_really_saves_are_refused_by_name(key, tmp_path):
    case = Case(llama, {}, {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **REFUSED[key]})
    peft.get_peft_model(case.base(), case.peft_config()).save_pretrained(tmp_path / "a")
    for read in (read_adapter, lambda folder: load_adapter(llama(), folder)):
        with pytest.raises(AdapterError, match=rf"adapter_config\.json: {key} is "):
            read(tmp_path / "a")
