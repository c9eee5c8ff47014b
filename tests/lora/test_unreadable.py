"""Layers that peft refuses: `all-linear` leaves them out and says how to adapt them all the same."""

from types import SimpleNamespace

import pytest
from torch import nn

from lorakit.lora import LoraSpec, plan


class Mixing(nn.Module):
    """Two state-space blocks by their names, in a model of the given type."""

    def __init__(self, model_type: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type=model_type)
        names = ("in_proj", "out_proj", "xout_proj")
        blocks = [{name: nn.Linear(16, 16) for name in names} for _ in range(2)]
        self.layers = nn.ModuleList(nn.ModuleDict(block) for block in blocks)


def names(model_type: str, *targets: str) -> set[str]:
    made = plan(Mixing(model_type), LoraSpec(targets=targets or ("all-linear",)))
    return {target.path.rsplit(".", 1)[-1] for target in made.targets}


@pytest.mark.parametrize("model_type", ["mamba", "mamba2", "falcon_mamba", "falcon_h1"])
def test_all_linear_adapts_what_peft_reads(model_type):
    assert names(model_type) == {"in_proj", "xout_proj"}
    reasons = {s.path: s.reason for s in plan(Mixing(model_type), LoraSpec()).skipped}
    assert list(reasons) == ["layers.0.out_proj", "layers.1.out_proj"]
    for reason in reasons.values():
        assert f"beside a {model_type}" in reason
        assert reason.endswith("--targets all-linear,out_proj")


def test_what_the_reason_advises_adapts_them():
    assert names("mamba", "all-linear", "out_proj") == {"in_proj", "out_proj", "xout_proj"}
    assert names("mamba", "out_proj") == {"out_proj"}
    assert names("mamba", "*.0.out*") == {"out_proj"}


def test_other_models_keep_theirs():
    assert names("bamba") == {"in_proj", "out_proj", "xout_proj"}
