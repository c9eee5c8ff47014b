"""Rows past the limits of a configuration: the same logits, loss and gradients as each row alone."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from architectures import tiny_model
from families import COMMON, VOCABULARY, tiny
from lorakit import LoraSpec, attach
from lorakit.data import Encoded, TokenTable, micro_batches
from lorakit.execution.facts import facts_of
from lorakit.execution.lengths import limits_of
from lorakit.execution.runnable import Packed, Runnable
from lorakit.lora.layers import LoraLayer
from lorakit.training.loss import CausalLoss
from mixing_families import tiny_kind

LENGTHS = (9, 23, 37, 5)
SIZES = {key: value for key, value in COMMON.items() if key != "head_dim"}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "llama_4_scaling_beta": 0.3,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
DYNAMIC = {
    "max_position_embeddings": 16,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
}
LONG = {
    "original_max_position_embeddings": 16,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 16,
    },
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# The family, what it is given, and how its rows must be run past the limit of 16 (None: any way).
CASES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "temperature of the place": ("ministral3", {"head_dim": 8, "rope_parameters": YARN}, None),
    "windows in the mask": (
        "qwen2_moe",
        {
            **EXPERTS,
            "use_sliding_window": True,
            "sliding_window": 16,
            "max_window_layers": 0,
            "shared_expert_intermediate_size": 24,
        },
        None,
    ),
    "windows in the mask, phimoe": ("phimoe", {"sliding_window": 16, "num_local_experts": 4}, None),
    "chunks": (
        "llama4_text",
        {
            "head_dim": 8,
            "attention_chunk_size": 16,
            "floor_scale": 16,
            "attn_scale": 0.4,
            "no_rope_layers": [1, 0],
            "num_local_experts": 2,
            "intermediate_size_mlp": 32,
        },
        None,
    ),
    "longrope": ("phi3", LONG, "alone"),
    "longrope, another family": ("llama", {"head_dim": 8, **LONG}, "alone"),
    "dynamic rope": ("llama", DYNAMIC, "alone"),
    "dynamic rope, another family": ("qwen2", DYNAMIC, "alone"),
    "a window that packs": ("starcoder2", {"sliding_window": 16}, "packed"),
}


def build(case: str) -> Any:
    family, changes, _ = CASES[case]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **changes})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def token_rows() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (sum(LENGTHS),), generator=generator)
    return list(ids.split(LENGTHS))


def pairs(model: Any) -> dict[str, torch.Tensor]:
    """Attached, with B not zero: their tensors by name."""
    spec = LoraSpec(rank=2, alpha=4.0, targets=("re:.*(q|qkv|o)_proj",))
    attach(model, spec, seed=1)
    layers = {p: m for p, m in model.named_modules() if isinstance(m, LoraLayer)}
    generator = torch.Generator().manual_seed(5)
    for layer in layers.values():
        layer.B.data = 0.1 * torch.randn(layer.B.shape, generator=generator)
    return {f"{path}.{n}": getattr(m, n) for path, m in layers.items() for n in "AB"}


@pytest.mark.parametrize("family", ["bamba", "falcon_h1", "mamba2", "recurrent_gemma"])
def test_a_limit_longer_than_what_a_trial_compares(family):
    """Of a long sequence a trial looks at both ends: 40 tokens are more than these."""
    model = tiny_kind(family)
    for name in ("mamba_chunk_size", "chunk_size", "attention_window_size"):
        if hasattr(model.config, name):
            setattr(model.config, name, 80)
    lengths = (9, 120, 37, 119)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (sum(lengths),), generator=generator)
    alone = torch.cat([model(row[None], use_cache=False).logits[0] for row in ids.split(lengths)])
    runnable = Runnable(model, longest=max(lengths))
    assert runnable.packs
    rows = Packed(ids, torch.cat([torch.arange(n) for n in lengths]), lengths)
    packed = runnable.logits(rows, torch.arange(sum(lengths)))
    assert (packed - alone).abs().max() < 1e-4 * alone.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_past_a_limit_are_those_of_each_row_alone(case):
    model = build(case)
    tensors = pairs(model)
    rows = token_rows()
    nll = torch.zeros(())
    for ids in rows:
        logits = model(ids[None], use_cache=False).logits[0, :-1]
        nll = nll + torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
    nll.backward()
    expected = {name: p.grad.clone() for name, p in tensors.items()}
    model.zero_grad()

    table = TokenTable.build(
        Encoded(ids.numpy().astype("int32"), (torch.arange(len(ids)) > 0).float().numpy(), "row")
        for ids in rows
    )
    loss = CausalLoss(model)
    (batch,) = micro_batches(table, range(len(table)), 4096)
    got, count = loss(batch)
    got.backward()
    assert count == sum(LENGTHS) - len(LENGTHS)
    assert abs(got.item() - nll.item()) < 1e-4 * nll.item()
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, parameter in tensors.items():
        assert (parameter.grad - expected[name]).abs().max() < 1e-3 * largest, name
    if (way := CASES[case][2]) is not None:
        assert loss.runnable.way == way
    assert ("alone" in loss.runnable.why_not_packed) is (loss.runnable.way == "alone")


def test_limits_are_found_by_the_names_of_fields_at_any_depth():
    assert limits_of(build("temperature of the place").config) == (16, 512)
    assert limits_of(build("chunks").config) == (16, 512)
    assert limits_of(build("windows in the mask, phimoe").config) == (16, 512)
    assert limits_of(tiny("llama").config) == (512,)
    assert 7 in limits_of(tiny("mistral", sliding_window=7).config)


def test_a_trial_is_made_again_only_where_rows_cross_a_limit(monkeypatch):
    model = tiny("mistral", sliding_window=100)
    runnable = Runnable(model)
    assert runnable.packs
    assert facts_of(model).lengths == (7, 12)
    with monkeypatch.context() as patched:
        patched.setattr("lorakit.execution.facts.same_answer", None)
        patched.setattr("lorakit.execution.facts.same_computed", None)
        runnable.prepare(100)
    runnable.prepare(101)
    assert facts_of(model).lengths == (7, 106)
    assert runnable.packs
    with monkeypatch.context() as patched:
        patched.setattr("lorakit.execution.facts.same_computed", None)
        runnable.prepare(500)


def test_a_way_with_right_answers_and_wrong_gradients_is_not_taken(monkeypatch):
    from lorakit.execution import fused

    own = fused.gated_mlp

    def wrong(*inputs):
        y = own(*inputs)
        return y.detach() + 0.5 * (y - y.detach())

    monkeypatch.setattr(fused, "gated_mlp", wrong)
    runnable = Runnable(tiny("llama"))
    assert runnable.packs
    assert runnable.fused_blocks == ()


def test_wrong_lengths_are_named_before_anything_is_tried():
    runnable = Runnable(tiny("llama"))
    ids = torch.arange(10)
    with pytest.raises(ValueError, match="lengths sum to 9, but there are 10"):
        runnable.unpacked_logits(Packed(ids, ids, (4, 5)), ids)


@pytest.mark.parametrize("family", ["ctrl", "git"])
def test_embeddings_that_a_model_scales_in_their_place_are_followed(family):
    """A leaf that wants a gradient may not be changed in its place: such models were refused."""
    model = tiny_model(family)
    assert Runnable(model).way in ("packed", "padded", "alone")


@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_chooses_among_equals_runs_each_row_alone(seed):
    """Equal tokens have equal scores in Doge's first layer: which are seen depends on the tensor's width."""
    model = tiny_model("doge", seed)
    assert Runnable(model).way == "packed"
    generator = torch.Generator().manual_seed(seed)
    few = torch.randint(5, VOCABULARY, (6,), generator=generator)
    rows = [few[torch.randint(6, (n,), generator=generator)] for n in (9, 37, 23)]
    with torch.no_grad():
        expected = torch.cat(
            [model(input_ids=row[None], use_cache=False).logits[0] for row in rows]
        )
    runnable = Runnable(model, longest=37)
    assert runnable.way == "alone"
    packed = Packed(torch.cat(rows), torch.cat([torch.arange(len(r)) for r in rows]), (9, 37, 23))
    with torch.no_grad():
        logits = runnable.unpacked_logits(packed, torch.arange(len(packed.ids_T)))
    assert torch.equal(logits, expected)


def test_a_choice_among_unequal_scores_packs():
    model = tiny_model("deepseek_v32")
    assert Runnable(model, longest=40).way == "packed"
