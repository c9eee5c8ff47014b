"""Blocks of GGUF files against the packers and readers of gguf and llama.cpp."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from lorakit.adapters.export.quantizing import quantize, quantizer
from lorakit.errors import MissingExtraError
from lorakit.kernels.packed.ggml import BLOCK_TYPES, GgmlBlocks
from lorakit.kernels.packed.packing import rows, whole


def packed(raw: np.ndarray, name: str) -> GgmlBlocks:
    return GgmlBlocks(BLOCK_TYPES[name], torch.from_numpy(np.array(raw))).checked()


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_every_byte_means_what_gguf_reads(name):
    kind, theirs = BLOCK_TYPES[name], GGMLQuantizationType[name]
    assert (kind.size, kind.nbytes) == gguf.GGML_QUANT_SIZES[theirs]
    assert kind.code == theirs.value
    raw = np.random.default_rng(0).integers(0, 256, (7, 3 * kind.nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):  # random float16 scales: infinities and NaNs among them
        expected = gguf.quants.dequantize(raw, theirs)
    ours = whole(packed(raw, name), torch.float32).numpy()
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_what_gguf_packs_is_near_what_was_packed(name):
    weight = np.random.default_rng(1).standard_normal((6, 96), dtype=np.float32)
    raw = gguf.quants.quantize(weight, GGMLQuantizationType[name])
    ours = whole(packed(raw, name), torch.float32).numpy()
    steps = {"Q4_0": 8, "Q4_1": 15, "Q5_0": 16, "Q5_1": 31, "Q8_0": 127}[name]
    assert np.abs(ours - weight).max() < np.abs(weight).max() * 2.2 / steps


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K_S", "Q4_K_S", "Q5_K_S", "Q6_K"])
def test_what_llama_cpp_packs(tmp_path, name):
    """llama-quantize packs a file of one matrix; gguf cannot write these types."""
    try:
        quantizer()
    except MissingExtraError as error:
        pytest.skip(str(error))
    weight = np.random.default_rng(2).standard_normal((8, 512), dtype=np.float32)
    writer = GGUFWriter(tmp_path / "plain.gguf", "llama")
    for key, value in {"block_count": 1, "context_length": 8, "embedding_length": 512}.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for tensor in ("blk.0.ffn_up.weight", "blk.0.ffn_gate.weight"):
        writer.add_tensor(tensor, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    quantize(tmp_path / "plain.gguf", tmp_path / "packed.gguf", name)
    tensor = GGUFReader(tmp_path / "packed.gguf").tensors[0]
    kind = tensor.tensor_type.name
    assert kind == name.removesuffix("_S")
    ours = whole(packed(tensor.data, kind), torch.float32).numpy()
    np.testing.assert_array_equal(ours, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    bits = int(name[1])
    assert np.abs(ours - weight).mean() < 0.9 / 2**bits * np.abs(weight).max()


@pytest.mark.parametrize("name", ["Q4_1", "Q6_K"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_rows_in_any_format(name, dtype):
    kind = BLOCK_TYPES[name]
    raw = np.random.default_rng(3).integers(0, 200, (9, kind.nbytes), dtype=np.uint8)
    for at in (0, 2) if name == "Q4_1" else (208,):  # finite scales
        raw[:, at : at + 2] = np.float16(0.03).reshape(1).view(np.uint8)
    weight = packed(raw, name)
    before = weight.blocks.clone()
    expected = torch.from_numpy(gguf.quants.dequantize(raw, GGMLQuantizationType[name]))
    assert torch.equal(rows(weight, 4, 7, dtype), expected[4:7].to(dtype))
    assert torch.equal(weight.blocks, before)
    assert weight.shape == (9, kind.size)
    assert weight.name == name.lower()
    moved = weight.over({"blocks": weight.blocks.clone()})
    assert torch.equal(whole(moved, dtype), expected.to(dtype))


def test_rows_that_are_no_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="are no rows of Q4_1"):
        GgmlBlocks(BLOCK_TYPES["Q4_1"], torch.zeros(2, 21, dtype=torch.uint8)).checked()
