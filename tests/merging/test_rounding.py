"""Merging models that enlarge rounding: held to what rounding alone does to them, and to no more.

That a merge is right is asked of its weights: W + s·B·A, written out in float64.
"""

import copy

import pytest
import torch

from adapter_models import IDS, tiny_llama
from architectures import tiny_model
from lorakit.errors import CertificateError
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.merging import merged_model
from lorakit.merging.certify import Certificate, Tolerance, compare
from lorakit.merging.merge import exact_comparison, require
from lorakit.merging.rounding import own_rounding

# Recurrences of two kinds, and a router over latent attention.
ENLARGING = ("qwen3_next", "bailing_hybrid", "deepseek_v32")
PROBES = [
    torch.randint(5, 260, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    for n in (120, 90)
]


def adapted(model):
    attach(model, LoraSpec(rank=1))
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(model).values():
        layer.A.data.copy_(torch.randn(layer.A.shape, generator=generator) / 4)
        layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) / 2)
    return model


@pytest.mark.parametrize("family", ENLARGING)
def test_a_right_merge_passes_and_one_without_a_pair_does_not(family):
    model = adapted(tiny_model(family))
    logits, found, merged = exact_comparison(model, PROBES, Tolerance())
    assert found.passed, str(found)
    require(Certificate((found,), Tolerance()))
    for path, layer in lora_layers(model).items():
        weight = merged.get_submodule(path).weight.double()
        product = layer.B.double() @ layer.A.double()
        assert torch.allclose(weight, layer.base.weight.double() + layer.scale * product, atol=1e-6)
    # A wrong merge: the pair that moves least is left out.
    layers = lora_layers(model)
    least = min(layers, key=lambda path: layers[path].delta().norm())
    wrong = copy.deepcopy(model)
    lora_layers(wrong)[least].B.data.zero_()
    rounding = own_rounding(model, PROBES, logits)
    with torch.no_grad():
        other = torch.cat(
            [merged_model(wrong)(input_ids=torch.tensor([probe])).logits[0] for probe in PROBES]
        )
    held = compare(
        logits,
        other.float(),
        dtype=torch.float32,
        arithmetic="float32 arithmetic",
        tolerance=Tolerance(),
        rounding=rounding,
    )
    assert not held.passed
    with pytest.raises(CertificateError, match="times what rounding alone does to this model"):
        require(Certificate((held,), Tolerance()))


def test_a_steady_model_is_held_to_the_fixed_tolerance_and_nothing_is_measured():
    model = adapted(tiny_llama())
    short = IDS.tolist()
    _, found, _ = exact_comparison(model, short, Tolerance())
    assert found.passed
    assert found.rounding is None


def test_rounding_is_measured_on_copies():
    model = adapted(tiny_llama())
    short = IDS.tolist()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with torch.no_grad():
        logits = torch.cat([model(input_ids=torch.tensor([p])).logits[0] for p in short])
    assert 1e-8 < own_rounding(model, short, logits) < 1e-3
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
