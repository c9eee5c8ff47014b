"""Gates of a few outputs: `all-linear` leaves them out where the rank exceeds them, and says so."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from architectures import tiny_config
from lorakit.errors import TargetError
from lorakit.lora import LoraSpec, plan


class Gated(nn.Module):
    """Two blocks with a gate of one output, and one of four inputs."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"up": (16, 32), "gate": (16, 1), "mix": (4, 16)}
        blocks = [{name: nn.Linear(*size) for name, size in sizes.items()} for _ in range(2)]
        self.layers = nn.ModuleList(nn.ModuleDict(block) for block in blocks)


def test_gates_are_left_out_by_all_linear_and_named():
    made = plan(Gated(), LoraSpec(rank=8))
    assert [t.path for t in made.targets] == ["layers.0.up", "layers.1.up"]
    reasons = {s.path: s.reason for s in made.skipped}
    assert reasons["layers.0.gate"] == "rank 8 is above 1, its smaller side; name it to adapt it"
    assert reasons["layers.1.mix"] == "rank 8 is above 4, its smaller side; name it to adapt it"


def test_a_rank_that_fits_adapts_them():
    assert len(plan(Gated(), LoraSpec(rank=1)).targets) == 6
    made = plan(Gated(), LoraSpec(rank=8, rank_pattern={"gate": 1, "mix": 4}))
    assert {t.path.split(".")[-1]: t.rank for t in made.targets} == {"up": 8, "gate": 1, "mix": 4}


def test_a_gate_that_is_named_is_an_error_as_any_layer_is():
    with pytest.raises(TargetError, match=r"rank 8 is above 1, the smaller side of layers.0.gate"):
        plan(Gated(), LoraSpec(rank=8, targets=("all-linear", "gate")))


def test_a_layer_that_is_no_gate_is_an_error():
    with pytest.raises(TargetError, match=r"rank 17 is above 16, the smaller side of layers.0.up"):
        plan(Gated(), LoraSpec(rank=17))


@pytest.mark.parametrize(
    ("family", "gate"),
    [("qwen2_moe", "shared_expert_gate"), ("qwen3_next", "shared_expert_gate")],
)
def test_models_with_gates_take_the_default_rank(family, gate):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(family))
    made = plan(model, LoraSpec())
    assert {t.rank for t in made.targets} == {8}
    left_out = [s.reason for s in made.skipped if s.path.endswith(gate)]
    assert left_out
    assert all(reason.startswith("rank 8 is above 1") for reason in left_out)
