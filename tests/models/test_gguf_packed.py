"""A GGUF file whose blocks stay as they are gives the model of the same file unpacked."""

import gguf as theirs
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from torch import nn

from families import saved, tiny, tokenizer
from lorakit.adapters.export.quantizing import quantize, quantizer
from lorakit.errors import MissingExtraError, ModelError
from lorakit.kernels.packed.ggml import BLOCK_TYPES
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.models import gguf, gguf_packed
from lorakit.models.fingerprint import identify, identify_loaded
from lorakit.models.load import empty_model, load_model
from models.test_gguf import write

IDS = torch.arange(5, 60)[None]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def file_of(place, kind, *, tied=False, **sizes):
    """A tiny llama in a type of llama.cpp's, by its own quantizer."""
    try:
        quantizer()
    except MissingExtraError as error:
        pytest.skip(str(error))
    width = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32} | sizes
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": tied}
    words = tokenizer()
    words.add_tokens(["12"])
    write(place / "plain.gguf", tiny("llama", **width, **heads), words)
    quantize(place / "plain.gguf", place / "packed.gguf", kind)
    return place / "packed.gguf"


def packed_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, PackedLinear)}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q2_K"])
def test_it_computes_what_the_unpacked_file_does(place, kind, tied):
    path = file_of(place, kind, tied=tied)
    plain, words = load_model(str(gguf.folder_of(path)), dtype="bfloat16", device="cpu")
    kept, same_words = load_model(str(gguf_packed.folder_of(path)), dtype="bfloat16", device="cpu")
    layers = packed_layers(kept)
    assert len(layers) == 14
    names = {layer.packing.name.upper() for layer in layers.values()}
    assert names <= {tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert kind.removesuffix("_M") in names
    for name, tensor in plain.state_dict().items():
        layer = layers.get(name.removesuffix(".weight"))
        mine = kept.get_parameter(name) if layer is None else layer.weight
        assert torch.equal(mine, tensor)
    with torch.no_grad():
        expected, found = plain(IDS).logits, kept(IDS).logits
    assert (found - expected).abs().max() <= 2**-7 * expected.abs().max()
    assert words.backend_tokenizer.to_str() == same_words.backend_tokenizer.to_str()
    assert kept.config.tie_word_embeddings == plain.config.tie_word_embeddings == tied
    assert not hasattr(kept.config, "quantization_config")
    assert type(kept.get_output_embeddings()) is nn.Linear


def test_every_byte_is_the_file_s_own(place):
    """Rows of q and k are moved as whole rows; float32 products see no rounding to bfloat16."""
    path = file_of(place, "Q4_1")
    model, _ = load_model(str(gguf_packed.folder_of(path)), dtype="float32", device="cpu")
    file = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    for block in range(2):
        layer = model.model.layers[block]
        v = layer.self_attn.v_proj.packing.blocks.numpy()
        assert np.array_equal(v, file[f"blk.{block}.attn_v.weight"].data)
        q, stored = layer.self_attn.q_proj.packing.blocks, file[f"blk.{block}.attn_q.weight"]
        assert not np.array_equal(q.numpy(), stored.data)
        assert sorted(map(bytes, q.numpy())) == sorted(map(bytes, stored.data))
        # llama.cpp has the two halves of a head side by side.
        whole = theirs.quants.dequantize(stored.data, stored.tensor_type).reshape(8, 16, 2, 256)
        expected = torch.from_numpy(whole).transpose(1, 2).reshape(256, 256)
        assert torch.equal(layer.self_attn.q_proj.weight, expected)
        assert layer.mlp.up_proj.packed_bytes == layer.mlp.up_proj.elements * 5 // 8


def test_a_folder_is_made_once_and_anew_for_a_changed_file(place, monkeypatch):
    path = file_of(place, "Q4_0")
    first = gguf_packed.folder_of(path)
    assert set(load_file(first / "model.safetensors")) >= {"model.embed_tokens.weight"}
    monkeypatch.setattr(gguf_packed, "write", None)
    assert gguf_packed.folder_of(path) == first
    monkeypatch.undo()
    monkeypatch.setenv("LORAKIT_CACHE", str(place / "cache"))
    path.unlink()
    assert gguf_packed.folder_of(file_of(place, "Q8_0")) != first


def test_what_cannot_stay_packed_is_refused_by_name(place, monkeypatch):
    path = file_of(place, "Q8_0")
    with pytest.raises(
        ModelError, match=r"plain\.gguf keeps no linear layer in blocks: leave --base"
    ):
        gguf_packed.folder_of(place / "plain.gguf")
    monkeypatch.delitem(BLOCK_TYPES, "Q8_0")
    with pytest.raises(
        ModelError, match=r"attn_q.* is of type Q8_0, which is not kept packed here"
    ):
        gguf_packed.folder_of(path)
    assert not list((place / "cache" / "models").glob("*packed"))


def test_base_dtype_packed_keeps_a_file_s_blocks(place):
    path = file_of(place, "Q4_1")
    kept, _ = load_model(str(path), dtype="float32", base_dtype="packed")
    assert {layer.packing.name for layer in packed_layers(kept).values()} == {"q4_1"}
    assert not gguf.converted(path).exists()  # nothing was unpacked for good
    plain, _ = load_model(str(path), dtype="float32")
    assert packed_layers(plain) == {}
    again, _ = load_model(str(path), dtype="float32", base_dtype="int8")
    assert {layer.packing.name for layer in packed_layers(again).values()} == {"int8"}
    empty = empty_model(str(path), base_dtype="packed")
    shapes = {n: p.shape for n, p in plain.named_parameters()}
    assert {n: p.shape for n, p in empty.named_parameters()} == shapes
    # One base either way: an adapter of the one is an adapter of the other.
    assert identify(str(path), base_dtype="packed") == identify(str(path))
    assert identify_loaded(kept, None) == identify(str(path))


def test_base_dtype_packed_of_an_ordinary_folder_is_refused(place):
    folder = saved(place / "base")
    with pytest.raises(ModelError, match="holds no packed weights that could stay so"):
        load_model(str(folder), base_dtype="packed")
