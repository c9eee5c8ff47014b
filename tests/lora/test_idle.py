"""Layers that a model never calls get no pair, before the first step, and say why."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from architectures import tiny_model
from families import tiny
from lorakit import LoraSpec, plan
from lorakit.errors import TargetError
from lorakit.lora.kinds import kind_of

# The family, what is idle in it, and a word of the reason.
IDLE = {
    "mamba": ("dt_proj", "never calls"),
    "falcon_mamba": ("dt_proj", "never calls"),
    "jamba": ("dt_proj", "never calls"),
    "longcat_flash": ("classifier", "never calls"),
    "gemma3": ("vision_tower", "rows of text"),
    "bart": ("encoder_attn", "rows of text"),
    "whisper": ("encoder_attn", "rows of text"),
    "deepseek_v32": ("indexer", "without gradient"),
    "glm_moe_dsa": ("indexer", "without gradient"),
}


def parts(path: str) -> list[str]:
    return path.split(".")


@pytest.mark.parametrize("family", IDLE)
def test_idle_layers_are_skipped_with_the_reason_on_any_device(family):
    name, word = IDLE[family]
    model = tiny_model(family)
    adapted = plan(model, LoraSpec(rank=1))
    assert not any(name in parts(target.path) for target in adapted.targets)
    reasons = [s.reason for s in adapted.skipped if name in parts(s.path) and word in s.reason]
    assert reasons
    before = {path: p.requires_grad for path, p in model.named_parameters()}
    assert all(before.values())  # the model is left as it was
    assert not any(p.is_meta for p in model.parameters())
    on_meta = plan(model.to("meta"), LoraSpec(rank=1))
    assert [t.path for t in on_meta.targets] == [t.path for t in adapted.targets]
    assert on_meta.skipped == adapted.skipped


def test_every_pair_that_is_planned_gets_a_gradient():
    """By the model's own code on a long row, with its own weights: DeepSeek V4 fills chunks first."""
    model: Any = tiny_model("deepseek_v4").requires_grad_(False)
    outputs = {}

    def keep(path):
        def hook(_module, _inputs, y):
            outputs[path] = y if y.requires_grad else y.requires_grad_()
            outputs[path].retain_grad()

        return hook

    for target in plan(model, LoraSpec(rank=1)).targets:
        model.get_submodule(target.path).register_forward_hook(keep(target.path))
    ids = torch.arange(5, 205)[None]
    model(ids, use_cache=False).logits.square().sum().backward()
    assert outputs
    assert [path for path, y in outputs.items() if y.grad is None] == []


def test_named_alone_an_idle_layer_is_an_error_that_says_why():
    with pytest.raises(
        TargetError, match=r"'dt_proj' names .*dt_proj, and the model never calls it"
    ):
        plan(tiny("mamba"), LoraSpec(rank=1, targets=("dt_proj",)))
    mixed = plan(tiny_model("bart"), LoraSpec(rank=1, targets=("q_proj",)))
    assert {parts(t.path)[-2] for t in mixed.targets} == {"self_attn"}


def test_experts_that_no_token_came_to_are_not_idle():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.unused = nn.Linear(4, 4)

        def forward(self, x):
            return self.experts[1](x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 4)
            self.layers = nn.ModuleList([Block()])
            self.head = nn.Linear(4, 20)

        @property
        def device(self):
            return self.head.weight.device

        def get_input_embeddings(self):
            return self.embed

        def forward(self, input_ids, use_cache):
            class Output:
                logits = self.head(self.layers[0](self.embed(input_ids)))

            return Output

    adapted = plan(Model(), LoraSpec(rank=1))
    assert [t.path for t in adapted.targets] == [f"layers.0.experts.{i}" for i in range(3)]
    assert [s.path for s in adapted.skipped if "never calls" in s.reason] == ["layers.0.unused"]


class Same(nn.Linear):
    def forward(self, x):
        return x @ self.weight.T + self.bias


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * F.linear(x, self.weight, self.bias)


class Router(nn.Linear):
    def forward(self, x):
        logits = super().forward(x)
        return logits.softmax(-1), logits


class Eight(nn.Linear):
    """A quantized layer in the manner of the libraries: another weight, another forward."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * 0.1, self.bias)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (Same(4, 5), "linear"),
        (Scaled(4, 5), None),
        (Router(4, 5), None),
        (Eight(), "linear"),
        (nn.Linear(4, 5, device="meta"), "linear"),
        (Same(4, 5, device="meta"), "linear"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_subclass_is_linear_where_its_product_is(module, kind):
    assert kind_of(module) == kind


@pytest.mark.parametrize("family", ["llama4_text", "phimoe", "dory", "falcon"])
def test_families_with_a_linear_class_of_their_own(family):
    model = tiny_model(family)
    own = {
        p for p, m in model.named_modules() if isinstance(m, nn.Linear) and type(m) is not nn.Linear
    }
    assert own
    adapted = {t.path for t in plan(model, LoraSpec(rank=1, targets=("all-linear",))).targets}
    # Falcon's is the product written out; the others' do more.
    assert bool(own & adapted) is (family == "falcon")
    if family != "falcon":
        assert own <= {s.path for s in plan(model, LoraSpec(rank=1)).skipped}
