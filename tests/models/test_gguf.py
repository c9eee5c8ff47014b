"""A GGUF file written by gguf's own writer gives the logits of the model it was made from."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

from families import tiny, tokenizer
from lorakit.errors import ModelError
from lorakit.models import gguf
from lorakit.models.load import empty_model, load_model

_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(path, model, words, *, pre="smollm", quantized=False):
    """What llama.cpp's convert_hf_to_gguf.py writes for a llama: q and k in its order of rotation."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    vocabulary = sorted(words.get_vocab(), key=words.get_vocab().get)
    vocabulary += [f"unused{i}" for i in range(config.vocab_size - len(vocabulary))]
    writer.add_token_list(vocabulary)
    special = set(words.all_special_tokens)
    writer.add_token_types(
        [TokenType.CONTROL if t in special else TokenType.NORMAL for t in vocabulary]
    )
    # One merge, "1" + "2": a tokenizer that does not separate digits would use it.
    writer.add_token_merges(["1 2"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(words.chat_template)
    for name, tensor in model.state_dict().items():
        place, _, rest = name.removeprefix("model.").removeprefix("layers.").partition(".")
        if place == "lm_head" and config.tie_word_embeddings:
            continue
        if place.isdigit():
            gguf_name = f"blk.{place}.{_NAMES[rest.removesuffix('.weight')]}.weight"
        else:
            gguf_name = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[
                place
            ] + ".weight"
        if "q_proj" in name or "k_proj" in name:
            heads = tensor.shape[0] // config.head_dim
            halves = tensor.view(heads, 2, config.head_dim // 2, -1)
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        array = tensor.numpy().astype(np.float32)
        if quantized and array.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name, quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def original(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    words = tokenizer()
    words.add_tokens(["12"])
    model = tiny("llama", hidden_size=64, num_attention_heads=8, num_key_value_heads=2)
    return model, words, tmp_path / "tiny.gguf"


def test_it_gives_the_logits_and_tokens_of_its_original(original, capfd):
    model, words, path = original
    write(path, model, words)
    loaded, read = load_model(str(path), dtype="float32")
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        expected, found = model(ids).logits, loaded(ids).logits
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert loaded.dtype == torch.float32
    assert read.convert_ids_to_tokens(read("a 1234")["input_ids"])[-4:] == ["1", "2", "3", "4"]
    assert read.decode(read("né 12 😀")["input_ids"]) == "né 12 😀"
    assert read.eos_token == "</s>"
    assert read.pad_token == "<pad>"
    assert read.chat_template == words.chat_template
    assert not hasattr(loaded.config, "quantization_config")
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")


def test_quantized_blocks_become_dense_bf16_once(original, monkeypatch):
    model, words, path = original
    write(path, model, words, quantized=True)
    loaded, _ = load_model(str(path), dtype="bfloat16")
    weight = loaded.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.bfloat16
    expected = model.model.layers[0].mlp.up_proj.weight
    assert (weight.float() - expected).abs().max() < 0.01 * expected.abs().max()
    monkeypatch.setattr(gguf, "read", lambda _: pytest.fail("converted again"))
    load_model(str(path))


def test_an_unknown_way_of_cutting_text_is_refused_unless_a_tokenizer_lies_beside(original):
    model, words, path = original
    write(path, model, words, pre="another-scheme")
    with pytest.raises(ModelError, match=r"'another-scheme'.*tokenizer.json"):
        load_model(str(path))
    words.save_pretrained(path.parent)
    _, read = load_model(str(path))
    assert read("a 12")["input_ids"] == words("a 12")["input_ids"]


def test_broken_files_say_so(original):
    model, words, path = original
    write(path, model, words)
    whole = path.read_bytes()
    for size in (3, 20, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"truncated|not a GGUF"):
            load_model(str(path))
    path.write_bytes(b"PK\x03\x04" + whole)
    with pytest.raises(ModelError, match="is not a GGUF file"):
        load_model(str(path))
    assert not (path.parent / "cache" / "models").exists()


def test_an_unknown_architecture_is_one_message(original):
    _, _, path = original
    writer = GGUFWriter(path, "no-such-thing")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_tensor("x", np.zeros((2, 2), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"'no-such-thing'.* cannot be read"):
        load_model(str(path))


def test_the_table_of_known_schemes_is_a_subset_of_what_transformers_splits():
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    # Those that transformers has no pattern for are split by GPT-2's, which is right for these.
    as_gpt2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"}
    assert gguf._SPLIT_BY_TRANSFORMERS - as_gpt2 <= set(GGUF_PRE_TOKENIZER_SPLITS)
    assert not gguf._SINGLE_DIGITS & set(GGUF_PRE_TOKENIZER_SPLITS)


@pytest.mark.parametrize("tied", [False, True])
def test_shapes_need_no_weights(original, monkeypatch, tied):
    """`lorakit count` of a GGUF file reads its header: what is counted is what would be loaded."""
    model, words, path = original
    if tied:
        model = tiny("llama", tie_word_embeddings=True)
        monkeypatch.setattr(
            GGUFWriter, "add_tensor", _without(GGUFWriter.add_tensor, "output.weight")
        )
    write(path, model, words, quantized=not tied)
    monkeypatch.setattr(gguf, "read", lambda _: pytest.fail("the weights were unpacked"))
    empty = empty_model(str(path))
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert sum(p.numel() for p in empty.parameters()) == sum(p.numel() for p in model.parameters())
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert {name: p.shape for name, p in empty.named_parameters()} == shapes
    assert not gguf.converted(path).exists()


def _without(add, left_out):
    def adding(self, name, *arguments, **options):
        if name != left_out:
            add(self, name, *arguments, **options)

    return adding
