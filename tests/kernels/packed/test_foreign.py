"""Packings of other libraries against the weights that these libraries unpack themselves.

The folders of tests/quantized were made by their own code (tests/quantized/make.py).
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lorakit.kernels.packed.bitsandbytes_blocks import FourBitBlocks, Nested
from lorakit.kernels.packed.packing import Packing, rows, whole
from lorakit.kernels.packed.scaled import ScaledBytes
from lorakit.kernels.packed.words import AwqWords, GptqWords, RowWords

FOLDERS = Path(__file__).parents[2] / "quantized"
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"


def parts_of(folder: str, stem: str) -> tuple[dict[str, Tensor], Tensor]:
    held = load_file(FOLDERS / folder / "model.safetensors")
    parts = {n.removeprefix(f"{stem}."): t for n, t in held.items() if n.startswith(f"{stem}.")}
    return parts, load_file(FOLDERS / folder / "expected.safetensors")[f"{stem}.weight"]


def gptq(t: dict[str, Tensor], bits: int, less_one: bool, groups: bool = True) -> Packing:
    listed = t["g_idx"] if groups else None
    return GptqWords(t["qweight"], t["qzeros"], t["scales"], listed, bits, less_one).checked()


def four_bits(t: dict[str, Tensor]) -> Packing:
    state = json.loads(bytes(t["weight.quant_state.bitsandbytes__nf4"].tolist()))
    nested = None
    if "weight.nested_absmax" in t:
        two = t["weight.nested_quant_map"], t["weight.nested_absmax"]
        nested = Nested(*two, state["nested_blocksize"], state["nested_offset"])
    three = t["weight"], t["weight.absmax"], t["weight.quant_map"]
    shape = tuple(state["shape"])
    return FourBitBlocks(*three, state["blocksize"], "nf4", shape, nested).checked()


def scaled(t: dict[str, Tensor]) -> Packing:
    width = t["weight"].shape[1]
    return ScaledBytes(t["weight"], t["weight_scale"], None, (1, width)).checked()


def eight_bits(t: dict[str, Tensor]) -> Packing:
    scales = t["SCB"][:, None] / 127
    return ScaledBytes(t["weight"], scales, None, (1, t["weight"].shape[1])).checked()


def row_words(t: dict[str, Tensor]) -> Packing:
    zeros, width = t.get("weight_zero_point"), int(t["weight_shape"][1])
    return RowWords(t["weight_packed"], t["weight_scale"], zeros, 4, width).checked()


def awq(t: dict[str, Tensor]) -> Packing:
    return AwqWords(t["qweight"], t["qzeros"], t["scales"]).checked()


PACKED = {
    "bitsandbytes_nf4": (four_bits, "nf4"),
    "bitsandbytes_nf4_nested": (four_bits, "nf4"),
    "bitsandbytes_int8": (eight_bits, "int8"),
    "gptq": (lambda t: gptq(t, 4, True), "gptq4"),
    "gptq_act_order": (lambda t: gptq(t, 4, True), "gptq4"),
    "gptq_v2_8bit": (lambda t: gptq(t, 8, False), "gptq8"),
    "awq": (awq, "awq4"),
    "compressed_w4a16": (row_words, "int4"),
    "compressed_w4a16_asymmetric": (row_words, "int4"),
    "compressed_int8": (scaled, "int8"),
    "compressed_fp8": (scaled, "fp8"),
}
# What the libraries round to while they unpack: bfloat16 for compressed-tensors, whose scales are in it.
ROUNDED = {n: 2**-8 if n.startswith("compressed") else 2e-7 for n in PACKED}


@pytest.mark.parametrize("stem", [UP, DOWN])
@pytest.mark.parametrize("folder", PACKED)
def test_a_weight_is_what_its_library_unpacks(folder, stem):
    make, name = PACKED[folder]
    parts, expected = parts_of(folder, stem)
    before = {n: t.clone() for n, t in parts.items()}
    packing = make(parts)
    assert packing.shape == tuple(expected.shape)
    assert packing.name == name
    # bitsandbytes works the scales of int8 out as SCB · (1 / 127).
    assert torch.allclose(whole(packing, torch.float32), expected, rtol=ROUNDED[folder], atol=1e-9)
    if folder.startswith("compressed"):
        assert torch.equal(whole(packing, torch.bfloat16), expected.bfloat16())
    for start, stop in ((0, 1), (3, 9), (5, packing.shape[0])):
        part = rows(packing, start, stop, torch.float64)
        assert torch.equal(part.float(), whole(packing, torch.float32)[start:stop])
    moved = packing.over({n: t.clone() for n, t in packing.tensors.items()})
    assert torch.equal(whole(moved, torch.float32), whole(packing, torch.float32))
    assert not any("." in n or n in ("weight", "bias") for n in packing.tensors)
    assert all(
        t.view(torch.uint8).equal(parts[n].view(torch.uint8)) for n, t in before.items() if t.dim()
    )


def test_the_fixtures_hold_what_is_hard():
    parts, _ = parts_of("gptq", UP)
    fields = (parts["qzeros"][..., None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
    assert 15 in fields  # a zero of 0, less one
    order = parts_of("gptq_act_order", UP)[0]["g_idx"]
    assert not torch.equal(order, order.sort().values)
    assert torch.equal(parts["g_idx"], parts["g_idx"].sort().values)
    assert parts_of("bitsandbytes_nf4_nested", UP)[0]["weight.absmax"].dtype == torch.uint8
    assert "weight_zero_point" in parts_of("compressed_w4a16_asymmetric", UP)[0]
    assert "weight_zero_point" not in parts_of("compressed_w4a16", UP)[0]


def test_groups_that_follow_one_another_need_not_be_listed():
    parts, expected = parts_of("gptq", DOWN)
    unlisted = gptq(parts, 4, True, groups=False)
    assert torch.equal(whole(unlisted, torch.float32), whole(gptq(parts, 4, True), torch.float32))
    assert set(gptq(parts, 4, True).tensors) == {"qweight", "qzeros", "scales"}
    assert torch.allclose(whole(unlisted, torch.float32), expected, rtol=2e-7)


@pytest.mark.parametrize("shape", [(256, 384), (200, 136), (1, 130)])
def test_fine_grained_float8(shape):
    """Blocks of 128 by 128, the last ones smaller; transformers' own backward unpacks them."""
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    torch.manual_seed(0)
    grid = -(-shape[0] // 128), -(-shape[1] // 128)
    values = torch.randn(shape).to(torch.float8_e4m3fn)
    scales = torch.rand(grid) + 0.01
    expected = _dequantize_fp8_weight(values, scales, [128, 128], torch.float32)
    packing = ScaledBytes(values, scales, None, (128, 128)).checked()
    assert torch.equal(whole(packing, torch.float32), expected)
    assert torch.equal(rows(packing, 0, 1, torch.float32), expected[:1])
    if shape[0] > 190:
        assert torch.equal(rows(packing, 120, 190, torch.float32), expected[120:190])


def test_tensors_that_do_not_fit_are_refused():
    parts, _ = parts_of("gptq", UP)
    with pytest.raises(ValueError, match="do not fit"):
        gptq(parts | {"qzeros": parts["qzeros"][:, :1]}, 4, True)
    with pytest.raises(ValueError, match="does not name a group"):
        gptq(parts | {"g_idx": parts["g_idx"] + 1}, 4, True)
    parts, _ = parts_of("awq", UP)
    with pytest.raises(ValueError, match="do not fit"):
        awq(parts | {"qweight": parts["qweight"][:, :1]})
    parts, _ = parts_of("compressed_int8", UP)
    with pytest.raises(ValueError, match="are due"):
        scaled(parts | {"weight_scale": parts["weight_scale"][:1]})
    parts, _ = parts_of("bitsandbytes_nf4", UP)
    with pytest.raises(ValueError, match="do not fit"):
        four_bits(parts | {"weight.absmax": parts["weight.absmax"][:1]})
