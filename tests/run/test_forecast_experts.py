"""FLOPs of mixtures: only the experts that a token reaches, held against torch's own counter."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from families import tiny
from lorakit.forecast import flops_per_token, reached_share, shape_of
from lorakit.lora import LoraSpec, attach, detach, plan
from mixtures import mixture

TOKENS = 32
EXPERTS = LoraSpec(rank=2, targets=(), target_parameters=("experts",))


class Counter(TorchDispatchMode):
    """FLOPs by torch's own formulas. (Its FlopCounterMode follows modules, and cannot without gradients.)"""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def counted(model: Any, backward: bool = False) -> int:
    """FLOPs of a pass over `TOKENS` tokens."""
    ids = torch.randint(3, 64, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    with Counter() as counter, torch.set_grad_enabled(backward):
        logits = model(ids).logits
        if backward:
            logits.sum().backward()
    return counter.total


def by_its_loop(family: str, **more: Any) -> Any:
    """A model whose experts run as its own loop: the counter knows no grouped products on a CPU."""
    model = mixture(family, **more)
    if family not in ("llama4_text", "dbrx"):
        model.set_experts_implementation("eager")
    return model


# Four experts or six of which a token reaches two; Llama 4 multiplies by all, and its router is a layer.
@pytest.mark.parametrize(
    "family", ["mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "gpt_oss", "granitemoe", "dbrx"]
)
def test_a_token_pays_for_the_experts_that_it_reaches(family: str) -> None:
    few, all_of_them = by_its_loop(family), by_its_loop(family, **every_expert(family))
    between = counted(all_of_them) - counted(few)
    shapes = [shape_of(model).block_parameters for model in (all_of_them, few)]
    assert between == 2 * TOKENS * (shapes[0] - shapes[1]) > 0


def every_expert(family: str) -> dict[str, Any]:
    if family == "dbrx":
        return {"ffn_config": {"ffn_hidden_size": 12, "moe_num_experts": 4, "moe_top_k": 4}}
    count = {"qwen3_moe": 6, "qwen2_moe": 5}.get(family, 4)
    return {"num_experts_per_tok": count}


def test_experts_that_are_not_told_the_choice_all_compute() -> None:
    few, many = (by_its_loop("llama4_text", num_local_experts=n) for n in (2, 4))
    routers = 2 * 2 * TOKENS * 16 * (4 - 2)  # of two layers; they stand in no sum of linear layers
    between = counted(many) - counted(few) - routers
    shapes = [shape_of(model).block_parameters for model in (many, few)]
    assert between == 2 * TOKENS * (shapes[0] - shapes[1])


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss", "llama4_text"])
@pytest.mark.parametrize("backward", [False, True])
def test_pairs_of_experts_that_a_token_does_not_reach_cost_nothing(
    family: str, backward: bool
) -> None:
    model, ranks = by_its_loop(family), (2, 4)
    costs, reached = [], []
    for rank in ranks:
        made = plan(model, LoraSpec(rank=rank, targets=(), target_parameters=("experts",)))
        attach(model, made)
        costs.append(counted(model, backward))
        share = reached_share(model, made.targets)
        reached.append(round(made.trainable * share))
        detach(model)
    # 2 forward; 4 more backward: of the gradient of A and B, and of what comes into them.
    times = 6 if backward else 2
    assert costs[1] - costs[0] == pytest.approx(
        times * TOKENS * (reached[1] - reached[0]), rel=0.1 if backward else 1e-9
    )
    shares = {"mixtral": 2 / 4, "qwen3_moe": 2 / 6, "gpt_oss": 2 / 4, "llama4_text": 1.0}
    assert reached[0] == pytest.approx(shares[family] * plan(model, EXPERTS).trainable)


def test_models_without_experts_are_counted_as_before() -> None:
    model = tiny("llama")
    made = plan(model, LoraSpec(rank=2))
    assert reached_share(model, made.targets) == 1.0
    shape = shape_of(model)
    linear = [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert shape.block_parameters == sum(m.weight.numel() for m in linear)
    assert flops_per_token(shape, 10, 0, 0) == 4 * shape.block_parameters + 60
