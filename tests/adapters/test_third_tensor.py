"""A variant with a third tensor, known to this file alone: computed, saved, loaded, or refused.

DoRA without its rescaling of B·A, so that what is expected is one line of plain torch:

    W' = diag(m) · (W + s·B·A)        m starts at 1
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.func import functional_call

from adapter_models import IDS, adapt, edit_config, edit_tensors, logits, tiny_llama
from lorakit.adapters import load_adapter, read_adapter, save_adapter
from lorakit.adapters.combine import combine
from lorakit.adapters.differences import differences, sizes
from lorakit.adapters.export.families import GgufBase
from lorakit.adapters.export.gguf import write_gguf_adapter
from lorakit.adapters.export.lint import lint
from lorakit.adapters.export.vllm import vllm_safe
from lorakit.adapters.load import attach_stored
from lorakit.adapters.pairs import read_stored, write_stored
from lorakit.adapters.parents import Part
from lorakit.adapters.shrink import shrink
from lorakit.adapters.specs import CombineSpec, ShrinkSpec
from lorakit.errors import AdapterError, ConfigError, TargetError
from lorakit.execution.runnable import Runnable
from lorakit.lora import LoraSpec, attach, lora_layers, plan, variants
from lorakit.lora.jobs import Jobs
from lorakit.lora.plain import PlainLora
from lorakit.lora.variant import Capability
from lorakit.merging.merge import merged_model
from lorakit.merging.merge_files import merge_files


@dataclass(frozen=True)
class Magnitude(PlainLora):
    """W' = diag(m) · (W + s·B·A)."""

    name: str = "test-magnitude"
    options: frozenset[str] = frozenset({"magnitude"})
    peft_keys: frozenset[str] = frozenset({"use_magnitude"})
    capabilities: frozenset[Capability] = frozenset({Capability.MERGE})

    @property
    def peft_suffixes(self):
        return {"magnitude": ".lora_magnitude_vector"}

    def tensors(self, geometry, rank):
        return {**super().tensors(geometry, rank), "magnitude": (geometry.out_features,)}

    def initialise(self, tensors, weight, generator, *, geometry, how):
        super().initialise(tensors, weight, generator, geometry=geometry, how=how)
        with torch.no_grad():
            tensors["magnitude"].fill_(1.0)

    def delta(self, tensors, weight, s):
        changed = weight + s * tensors["B"] @ tensors["A"]
        return tensors["magnitude"][:, None] * changed - weight


@dataclass(frozen=True)
class MagnitudeSpec(LoraSpec):
    magnitude: bool = False


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """What a new variant adds: an entry in the registry, and the option's field in the spec."""
    monkeypatch.setattr(variants, "VARIANTS", (*variants.VARIANTS, Magnitude()))
    monkeypatch.setattr("lorakit.adapters.peft_config.LoraSpec", MagnitudeSpec)


SPEC = MagnitudeSpec(rank=4, alpha=8.0, targets=("q_proj", "up_proj"), magnitude=True)


def magnified():
    """A tiny model whose A, B and magnitudes are all at random."""
    model = attach(tiny_llama(), SPEC)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            for tensor in layer.tensors.values():
                tensor.add_(torch.empty_like(tensor).normal_(0.0, 0.2, generator=g))
    return model


def by_hand(model):
    """Logits of the base whose weights were replaced by diag(m)·(W + s·B·A)."""
    weights = {
        f"{path}.weight": layer.magnitude[:, None]
        * (layer.base.weight + 8.0 / 4 * layer.B @ layer.A)
        for path, layer in lora_layers(model).items()
    }
    with torch.no_grad():
        return functional_call(tiny_llama(), weights, (IDS,)).logits


@pytest.fixture
def stored(tmp_path):
    return read_stored(save_adapter(magnified(), tmp_path / "magnified"))


def lacks(capability: Capability, instead: str) -> str:
    return rf"the variant test-magnitude cannot {capability.value}.*; .*{instead}".replace(
        "(", r"\("
    )


class TestComputing:
    def test_nothing_changes_before_training(self):
        torch.testing.assert_close(logits(attach(tiny_llama(), SPEC)), logits(tiny_llama()))

    def test_the_layer_computes_with_the_changed_weight(self):
        model = magnified()
        # float32 in another order of additions.
        torch.testing.assert_close(logits(model), by_hand(model), rtol=1e-4, atol=1e-4)
        assert (by_hand(model) - logits(tiny_llama())).abs().max() > 0.1

    def test_the_fused_blocks_are_left_to_the_models_own_code(self):
        """Beside plain pairs the same blocks run fused."""
        assert Runnable(adapt(tiny_llama(), targets=("q_proj",))).fused_blocks
        assert not Runnable(magnified()).fused_blocks

    def test_every_tensor_gets_its_gradient(self):
        layer = next(iter(lora_layers(attach(tiny_llama(), SPEC).double()).values()))
        for tensor in layer.tensors.values():
            torch.nn.init.normal_(tensor, generator=torch.Generator().manual_seed(1))
        x = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        names = list(layer.tensors)

        def output(*tensors):
            return functional_call(layer, dict(zip(names, tensors, strict=True)), (x,))

        assert names == ["A", "B", "magnitude"]
        torch.autograd.gradcheck(output, tuple(layer.tensors.values()))

    def test_the_plan_counts_it(self):
        plain = plan(tiny_llama(), LoraSpec(rank=4, targets=SPEC.targets)).trainable
        # Two blocks, each with 32 outputs of q_proj and 48 of up_proj.
        assert plan(tiny_llama(), SPEC).trainable == plain + 2 * (32 + 48)

    def test_dropout_is_refused(self):
        with pytest.raises(ConfigError, match=lacks(Capability.DROPOUT, "set dropout to 0")):
            replace(SPEC, dropout=0.1)

    def test_jobs_are_refused(self):
        with pytest.raises(TargetError, match=lacks(Capability.JOBS, "one by one")):
            Jobs(tiny_llama(), [plan(tiny_llama(), SPEC)], [0])

    def test_options_that_no_variant_has_together_are_refused(self):
        with pytest.raises(ConfigError, match="magnitude and rslora are on together"):
            replace(SPEC, rslora=True)


class TestOnDisk:
    def test_the_third_tensor_is_saved_and_comes_back(self, tmp_path):
        model = magnified()
        folder = save_adapter(model, tmp_path / "a")
        saved = load_file(folder / "adapter_model.safetensors")
        for path, layer in lora_layers(model).items():
            name = f"base_model.model.{path}.lora_magnitude_vector"
            assert torch.equal(saved[name], layer.magnitude)
        assert json.loads((folder / "adapter_config.json").read_text())["use_magnitude"] is True
        again = tiny_llama()
        info = load_adapter(again, folder)
        assert torch.equal(logits(again), logits(model))
        count = sum(tensor.numel() for tensor in saved.values())
        assert info.trainable_parameters == read_adapter(folder).trainable_parameters == count

    def test_a_copy_of_the_folder_keeps_it(self, stored, tmp_path):
        folder = write_stored(tmp_path / "copy", stored)
        file = "adapter_model.safetensors"
        assert (folder / file).read_bytes() == (stored.source / file).read_bytes()
        again = tiny_llama()
        attach_stored(again, stored)
        assert torch.equal(logits(again), logits(magnified()))

    def test_a_lost_tensor_is_named(self, stored):
        name = next(n for n in stored.opened.tensors if n.endswith("magnitude_vector"))
        (stored.source / "lorakit.json").unlink()
        edit_tensors(stored.source, lambda tensors: tensors.pop(name))
        for read in (read_adapter, read_stored, lambda f: load_adapter(tiny_llama(), f)):
            with pytest.raises(AdapterError, match=f"lacks {name}"):
                read(stored.source)

    def test_a_tensor_that_the_configuration_does_not_mean_is_named(self, stored):
        (stored.source / "lorakit.json").unlink()
        edit_config(stored.source, use_magnitude=False)
        for read in (read_adapter, read_stored, lambda f: load_adapter(tiny_llama(), f)):
            with pytest.raises(AdapterError, match="magnitude_vector, which has no place"):
                read(stored.source)

    def test_writing_without_it_is_refused(self, stored, tmp_path):
        plain = replace(stored.config, spec=replace(stored.spec, magnitude=False))
        with pytest.raises(AdapterError, match=r"A, B, magnitude.*variant LoRA keeps A, B"):
            write_stored(tmp_path / "b", replace(stored, config=plain))
        assert not (tmp_path / "b").exists()

    def test_keys_that_no_variant_has_together_are_refused(self, stored):
        edit_config(stored.source, use_rslora=True)
        with pytest.raises(AdapterError, match="use_magnitude and use_rslora are on together"):
            read_stored(stored.source)

    def test_an_unknown_key_names_the_nearest(self, stored):
        edit_config(stored.source, use_magnitud=True)
        with pytest.raises(AdapterError, match="did you mean 'use_magnitude'"):
            read_stored(stored.source)


class TestRefusals:
    def test_sums(self, stored):
        with pytest.raises(AdapterError, match=lacks(Capability.SUM, "lorakit merge")):
            combine([Part(stored)], CombineSpec())

    @pytest.mark.parametrize("threshold", [False, True])
    def test_shrinking(self, stored, threshold):
        with pytest.raises(AdapterError, match=lacks(Capability.SHRINK, "lower rank")):
            shrink(stored, ShrinkSpec(rank=2, threshold=threshold))

    def test_comparing_says_why_there_is_no_figure(self, stored):
        compared = differences(stored, stored)
        assert not compared.layers
        assert compared.unlike.keys() == stored.pairs.keys()
        assert "cannot be summed" in next(iter(compared.unlike.values()))
        assert {size.norm for size in sizes(stored)} == {None}

    def test_vllm(self, stored):
        with pytest.raises(AdapterError, match=lacks(Capability.VLLM, "lorakit merge")):
            vllm_safe(stored)

    @pytest.mark.parametrize("capability", [Capability.VLLM, Capability.LLAMA_CPP])
    def test_a_scale_that_cannot_be_folded(self, stored, monkeypatch, capability, tmp_path):
        """A runtime that took the variant would still need its scale in B."""
        able = replace(Magnitude(), capabilities=frozenset({capability}))
        monkeypatch.setattr(variants, "VARIANTS", (*variants.VARIANTS[:-1], able))
        write = {
            Capability.VLLM: lambda: vllm_safe(stored),
            Capability.LLAMA_CPP: lambda: write_gguf_adapter(
                stored, tmp_path / "a.gguf", base=_base()
            ),
        }
        with pytest.raises(AdapterError, match=lacks(Capability.FOLD, "merge")):
            write[capability]()

    def test_gguf(self, stored, tmp_path):
        with pytest.raises(AdapterError, match=lacks(Capability.LLAMA_CPP, "gguf-merged")):
            write_gguf_adapter(stored, tmp_path / "a.gguf", base=_base())
        assert not (tmp_path / "a.gguf").exists()

    def test_the_linter_says_so_for_each_runtime(self, stored):
        found = {f.runtime: f for f in lint(stored.source) if f.what == "use_magnitude"}
        assert found.keys() == {"vllm", "llama.cpp"}
        assert "cannot be loaded by vLLM" in found["vllm"].why
        assert all(f.verdict == "refuses" for f in found.values())

    def test_merging_in_memory_is_what_it_computes(self):
        model = magnified()
        torch.testing.assert_close(
            logits(merged_model(model)), by_hand(model), rtol=1e-4, atol=1e-4
        )

    def test_merging_of_what_cannot_be_merged(self, monkeypatch):
        unable = replace(Magnitude(), capabilities=frozenset())
        monkeypatch.setattr(variants, "VARIANTS", (*variants.VARIANTS[:-1], unable))
        with pytest.raises(TargetError, match=lacks(Capability.MERGE, "beside its base")):
            merged_model(magnified())

    def test_merging_into_files(self, stored, tmp_path):
        with pytest.raises(AdapterError, match=lacks(Capability.MERGE_ROWS, "in memory")):
            merge_files({}, {}, plan(tiny_llama(), SPEC), stored.pairs, tmp_path)


def _base() -> GgufBase:
    return GgufBase.of(tiny_llama().config)


def test_the_variants_that_users_have_are_those_of_peft(tmp_path: Path):
    """rsLoRA differs in its scale alone, and is read by what it means."""
    model = adapt(tiny_llama(), rslora=True, targets=("q_proj",))
    folder = save_adapter(model, tmp_path / "a")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["use_dora"]) == (True, False)
    assert {layer.scale for layer in lora_layers(model).values()} == {8.0 / 2.0}
    assert read_stored(folder).spec.rslora
