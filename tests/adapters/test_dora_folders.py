"""DoRA folders: what is refused by capability with a way on, and what every reader shows."""

import pytest
import torch

from adapter_models import logits, tiny_llama
from lorakit.adapters import load_adapter, read_adapter, save_adapter
from lorakit.adapters.combine import combine
from lorakit.adapters.export.families import GgufBase
from lorakit.adapters.export.gguf import write_gguf_adapter
from lorakit.adapters.export.lint import lint
from lorakit.adapters.export.vllm import vllm_safe
from lorakit.adapters.pairs import read_stored, write_stored
from lorakit.adapters.parents import Part
from lorakit.adapters.shrink import shrink
from lorakit.adapters.specs import CombineSpec, ShrinkSpec
from lorakit.errors import AdapterError, TargetError
from lorakit.lora import LoraSpec, attach, lora_layers, plan
from lorakit.lora.jobs import Jobs

SPEC = LoraSpec(rank=4, alpha=8.0, targets=("q_proj", "up_proj"), dora=True)


@pytest.fixture
def model():
    adapted = attach(tiny_llama(), SPEC)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in lora_layers(adapted).values():
            for tensor in layer.tensors.values():
                tensor.add_(torch.empty_like(tensor).normal_(0.0, 0.2, generator=g))
    return adapted


@pytest.fixture
def stored(model, tmp_path):
    return read_stored(save_adapter(model, tmp_path / "dora"))


def test_a_copy_is_the_same_adapter(model, stored, tmp_path):
    again = tiny_llama()
    info = load_adapter(again, write_stored(tmp_path / "copy", stored))
    assert torch.equal(logits(again), logits(model))
    assert info.spec.dora
    # Two blocks, each with 32 outputs of q_proj and 48 of up_proj.
    plain = plan(tiny_llama(), LoraSpec(rank=4, targets=SPEC.targets)).trainable
    assert read_adapter(stored.source).trainable_parameters == plain + 2 * (32 + 48)


def test_what_cannot_be_done_names_what_can(stored, tmp_path):
    base = GgufBase.of(tiny_llama().config)
    for act, said in (
        (lambda: combine([Part(stored)], CombineSpec()), "summed with other adapters; merge it"),
        (lambda: shrink(stored, ShrinkSpec(rank=2)), "singular values; train one of a lower rank"),
        (lambda: vllm_safe(stored), "be loaded by vLLM; .*lorakit merge"),
        (lambda: write_gguf_adapter(stored, tmp_path / "x", base=base), "llama.cpp; .*gguf-merged"),
    ):
        with pytest.raises(AdapterError, match=f"the variant DoRA cannot .*{said}"):
            act()
    with pytest.raises(TargetError, match=r"DoRA cannot be trained beside other.*one by one"):
        Jobs(tiny_llama(), [plan(tiny_llama(), SPEC)], [0])


def test_the_card_names_it_and_no_runtime_that_refuses_it(stored):
    card = (stored.source / "README.md").read_text()
    assert "# DoRA adapter for" in card
    assert "vLLM and llama.cpp load no DoRA: merge it for them (`lorakit merge`)." in card
    assert "vllm serve" not in card


def test_the_linter_knows_who_takes_it(stored):
    found = {(f.runtime, f.what) for f in lint(stored.source)}
    assert ("vllm", "use_dora") in found
    assert ("llama.cpp", "use_dora") in found
    assert not [f for f in found if f[0] in ("lorakit", "peft")]
