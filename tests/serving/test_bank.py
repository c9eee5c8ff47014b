"""Reading adapters into slots: what was checked once, and what must be checked again."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from engines import SPEC, base, make_adapter

from lorakit.adapters.pairs import read_stored
from lorakit.data import Template
from lorakit.errors import AdapterError
from lorakit.files.tensors import read_tensors, write_tensors
from lorakit.lora import variants
from lorakit.lora.plain import PlainLora
from lorakit.lora.variant import Capability
from lorakit.models.fingerprint import BaseIdentity
from lorakit.serving.bank import finite
from lorakit.serving.cache import size_for
from lorakit.serving.catalog import Catalog
from lorakit.serving.forward import open_forward
from lorakit.serving.vllm.exports import Exports


@pytest.fixture
def model():
    return base("llama")


@pytest.fixture
def bank(model):
    return open_forward(model, SPEC, size_for(64)).bank


def elements(staged):
    return [tensor for group in staged.groups for tensor in (group.A, group.B)]


def test_an_adapter_that_was_checked_before_is_staged_the_same(model, bank, tmp_path):
    folder = make_adapter(base("llama"), tmp_path / "a", 8, 1)
    first, second = (elements(bank.open(folder, "key")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(tensor.any() for tensor in first)


@pytest.mark.parametrize("how", ["renamed into place", "written over"])
def test_files_that_were_replaced_are_checked_again(bank, tmp_path, how):
    folder = make_adapter(base("llama"), tmp_path / "a", 8, 1)
    bank.open(folder, "key")
    file = folder / "adapter_model.safetensors"
    tensors = read_tensors(file)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    write_tensors(tmp_path / "other", tensors)
    before = file.stat()
    if how == "written over":
        shutil.copyfile(tmp_path / "other", file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    else:
        os.replace(tmp_path / "other", file)
    with pytest.raises(AdapterError, match=r"not the file that lorakit\.json was written for"):
        bank.open(folder, "key")


def test_what_is_not_finite_is_seen_and_large_numbers_are_not_taken_for_it():
    large = torch.full((8,), 3e38)
    assert finite(large)  # their sum is not
    assert finite(large.to(torch.bfloat16))
    for odd in (float("nan"), float("inf"), -float("inf")):
        large[3] = odd
        assert not finite(large)


def test_an_adapter_that_overflows_in_the_slots_is_refused(model, bank, tmp_path):
    folder = make_adapter(base("llama"), tmp_path / "a", 8, 1)
    stored = read_stored(folder)
    path, pair = next(iter(stored.pairs.items()))
    huge = replace(pair, B=torch.full_like(pair.B, 3e38), scale=10.0)
    with pytest.raises(AdapterError, match=r"is not finite in torch\.float32"):
        bank.stage(replace(stored, pairs={**stored.pairs, path: huge}))


class TestVariants:
    """Plain LoRA without one capability, as a variant would be that lacks it."""

    @pytest.fixture
    def folder(self, tmp_path):
        return make_adapter(base("llama"), tmp_path / "a", 8, 1)

    def lacking(self, capability, monkeypatch):
        able = frozenset(Capability) - {capability}
        lesser = PlainLora("Lesser", capabilities=able)
        monkeypatch.setattr(variants, "VARIANTS", (lesser, *variants.VARIANTS[1:]))
        return rf"the variant Lesser cannot {capability.value}; merge it into a model of its own"

    def test_slots_are_refused_when_an_adapter_is_opened(self, bank, folder, monkeypatch):
        bank.open(folder, "one")
        message = self.lacking(Capability.SLOTS, monkeypatch)
        with pytest.raises(AdapterError, match=message):
            bank.open(folder, "other")

    @pytest.mark.parametrize("holder", ["slots", "vLLM"])
    def test_a_name_is_refused_before_anything_is_computed(
        self, bank, folder, holder, monkeypatch, tmp_path
    ):
        held = bank if holder == "slots" else Exports(tmp_path / "out", bank.targets, 16)
        needed = Capability.SLOTS if holder == "slots" else Capability.VLLM
        identity = BaseIdentity("tiny", None, "1" * 64, "2" * 64, "3" * 64)
        names = {"a": folder}
        Catalog("tiny", identity, Template("raw"), held, folders=names).resolve("a")
        message = self.lacking(needed, monkeypatch)
        with pytest.raises(AdapterError, match=message):
            Catalog("tiny", identity, Template("raw"), held, folders=names).resolve("a")
