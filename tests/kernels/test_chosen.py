"""The line that says which kernels compute: true of packed weights too."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lorakit.kernels import native
from lorakit.kernels.chosen import kernels_of
from lorakit.kernels.packed.ggml import BLOCK_TYPES, GgmlBlocks
from lorakit.kernels.packed.int8 import Int8
from lorakit.kernels.packed.linear import PackedLinear

CPU = torch.device("cpu")
KNOWN = Int8.of(torch.ones(4, 32))
UNKNOWN = GgmlBlocks(BLOCK_TYPES["Q5_0"], torch.zeros(4, 22, dtype=torch.uint8))


def model(*packings, dtype=torch.bfloat16):
    """Of the CPU, with these weights."""
    layers = nn.Sequential(*(PackedLinear(packing, dtype) for packing in packings))
    return SimpleNamespace(dtype=dtype, device=CPU, modules=layers.modules)


def machine(monkeypatch, *sets):
    """A library of these sets on a processor that has them."""
    found = native.library()
    if isinstance(found, str):
        pytest.skip(found)
    having = native.Library(
        *(found.code, found.path, frozenset(sets), found.built, True, True, "threads")
    )
    monkeypatch.setattr(native, "library", lambda: having)
    monkeypatch.delenv(native.VARIABLE, raising=False)


def test_packings_that_the_set_reads_change_nothing(monkeypatch):
    machine(monkeypatch, "avx2", "avx512bf16")
    assert kernels_of(model(KNOWN)) == native.choose(torch.bfloat16, CPU)
    assert kernels_of(model(KNOWN)).line.startswith("kernels: avx512bf16 (lorakit-kernels")


def test_blocks_of_a_packing_that_it_does_not_read_are_plain_torchs(monkeypatch):
    machine(monkeypatch, "avx2", "avx512bf16")
    choice = kernels_of(model(KNOWN, UNKNOWN))
    assert choice.name == "avx512bf16"
    assert choice.line.endswith("; plain torch in blocks packed as q5_0")


def test_where_torch_multiplies_the_library_still_unpacks(monkeypatch):
    machine(monkeypatch, "avx2", "avx512bf16", "amx")
    choice = kernels_of(model(KNOWN))
    assert choice.name == native.PLAIN
    assert choice.line.endswith("; packed weights are unpacked by compiled kernels")
    assert not kernels_of(model(UNKNOWN)).beside


def test_plain_is_plain(monkeypatch):
    machine(monkeypatch, "avx2", "avx512bf16", "amx")
    monkeypatch.setenv(native.VARIABLE, native.PLAIN)
    assert kernels_of(model(KNOWN)).line == "kernels: plain torch (LORAKIT_KERNELS=plain)"
