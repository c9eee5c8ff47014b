"""GGUF adapters: llama.cpp's converter writes the same tensors, and llama.cpp the same logits."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader

from adapter_models import adapt
from families import tiny
from gguf_oracle import convert, field, tensors
from llama_cpp import LlamaCpp
from lorakit.adapters import save_adapter
from lorakit.adapters.export import write_gguf_adapter
from lorakit.adapters.export.families import KNOWN, GgufBase
from lorakit.adapters.pairs import read_stored
from lorakit.cli.main import run
from lorakit.errors import AdapterError, OutputError
from lorakit.lora import detach, lora_layers
from lorakit.lora.spec import ALL_LINEAR
from lorakit.merging import merged_model
from lorakit.models.sources import resolve
from lorakit.models.spec import ModelSpec

IDS = [5, 9, 2, 60, 33, 7, 41]
# Widths that ggml's blocks divide, and a head of its own.
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}


def small(family: str, **changes: Any) -> Any:
    sizes = {**SIZES, **changes}
    if family == "gpt2":
        untied = {"tie_word_embeddings": False, "initializer_range": 0.2}
        sizes = {"n_embd": 64, "n_head": 4, **untied, "hidden_size": 64, "num_attention_heads": 4}
        sizes |= changes
    if family == "gemma3_text":
        sizes |= {"query_pre_attn_scalar": 16}
    if family == "gemma2":
        sizes |= {"query_pre_attn_scalar": 16}
    return tiny(family, **sizes)


def adapter_of(model: Any, folder: Path, **spec: Any) -> Path:
    return save_adapter(adapt(model, **spec), folder)


def base_of(model: Any) -> GgufBase:
    return GgufBase.of(model.config)


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """For each family, lorakit's file and the converter's, of the same adapter."""
    room = tmp_path_factory.mktemp("gguf")
    made, jobs = {}, []
    for family in KNOWN:
        if family == "gpt2":
            continue  # the converter swaps A and B of a Conv1D; llama.cpp is the oracle below
        model = small(family)
        model.save_pretrained(room / family)
        folder = adapter_of(model, room / family / "adapter", rank=8, rank_pattern={"o_proj": 16})
        made[family] = (room / f"{family}.gguf", room / f"{family}-oracle.gguf")
        write_gguf_adapter(read_stored(folder), made[family][0], base=base_of(model))
        jobs.append(["--base", room / family, "--outfile", made[family][1], folder])
    convert("convert_lora_to_gguf.py", jobs)
    return made


@pytest.mark.parametrize("family", [name for name in KNOWN if name != "gpt2"])
def test_tensor_by_tensor_what_llama_cpps_converter_writes(converted, family):
    ours, theirs = (tensors(file) for file in converted[family])
    assert sorted(ours) == sorted(theirs)
    for name, wanted in theirs.items():
        assert np.array_equal(ours[name], wanted), name
    for key in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"):
        assert field(converted[family][0], key) == field(converted[family][1], key)


def test_scales_that_llama_cpp_cannot_have_move_into_b(tmp_path):
    """rsLoRA, ranks and alphas of their own: alpha / rank · B·A of the file is s·B·A of the folder."""
    model = small("qwen2")  # no rows are moved in this family
    spec = {
        "rank": 4,
        "rslora": True,
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {"o_proj": 3.0},
    }
    stored = read_stored(adapter_of(model, tmp_path / "adapter", **spec))
    file = write_gguf_adapter(stored, tmp_path / "a.gguf", base=base_of(model))
    written, alpha = tensors(file), field(file, "adapter.lora.alpha")
    layers = lora_layers(model)
    assert len(written) == 2 * len(layers)
    for path, layer in layers.items():
        name = base_of(model).tensor_name(path)
        A, B = (torch.from_numpy(written[f"{name}.lora_{side}"]).double() for side in "ab")
        wanted = layer.scale * layer.B.detach().double() @ layer.A.detach().double()
        torch.testing.assert_close(alpha / len(A) * B @ A, wanted, rtol=1e-6, atol=1e-7)


def test_one_alpha_without_rslora_changes_no_bit(tmp_path):
    model = small("qwen2")
    folder = adapter_of(model, tmp_path / "adapter", rank=3, alpha=7.0)
    write_gguf_adapter(read_stored(folder), tmp_path / "a.gguf", base=base_of(model))
    written = tensors(tmp_path / "a.gguf")
    for path, layer in lora_layers(model).items():
        name = base_of(model).tensor_name(path)
        A, B = written[f"{name}.lora_a"], written[f"{name}.lora_b"]
        assert np.array_equal(A[:3], layer.A.detach().numpy())
        assert np.array_equal(B[:, :3], layer.B.detach().numpy())
        assert A.shape[0] == B.shape[1] == 8  # rows that are no multiple of 8 are misread
        assert not A[3:].any()
        assert not B[:, 3:].any()


def test_float16_is_the_nearest_float16_or_an_error(tmp_path):
    model = small("llama")
    folder = adapter_of(model, tmp_path / "adapter")
    whole, half = tmp_path / "f32.gguf", tmp_path / "f16.gguf"
    write_gguf_adapter(read_stored(folder), whole, base=base_of(model))
    write_gguf_adapter(read_stored(folder), half, base=base_of(model), kind="f16")
    for name, tensor in tensors(whole).items():
        assert np.array_equal(tensors(half)[name], tensor.astype(np.float16))
    with torch.no_grad():
        next(iter(lora_layers(model).values())).B.fill_(1e5)
    save_adapter(model, folder, overwrite=True)
    with pytest.raises(AdapterError, match="f16 cannot: write f32"):
        write_gguf_adapter(read_stored(folder), tmp_path / "x", base=base_of(model), kind="f16")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("target", "named"), [("lm_head", "embedding"), ("embed_tokens", "output head")]
)
def test_a_pair_on_a_tied_weight_is_refused(tmp_path, target, named):
    model = small("llama", tie_word_embeddings=True)
    folder = adapter_of(model, tmp_path / "adapter", targets=(target,))
    with pytest.raises(AdapterError, match=f"{target} shares its weight with the {named}"):
        write_gguf_adapter(read_stored(folder), tmp_path / "a.gguf", base=base_of(model))


def test_an_unknown_family_is_refused_with_the_nearest(tmp_path):
    model = tiny("gpt_neox")
    folder = adapter_of(model, tmp_path / "adapter", targets=("query_key_value",))
    with pytest.raises(AdapterError, match=r"how llama\.cpp orders the weights of a 'gpt_neox'"):
        write_gguf_adapter(read_stored(folder), tmp_path / "a.gguf", base=base_of(model))


def test_a_module_that_llama_cpp_does_not_have_is_refused(tmp_path):
    folder = adapter_of(small("gpt2"), tmp_path / "adapter", targets=("wpe",))
    with pytest.raises(
        AdapterError, match=r"llama architecture has no weight for transformer\.wpe"
    ):
        write_gguf_adapter(read_stored(folder), tmp_path / "a", base=base_of(small("llama")))


def test_the_tokens_from_which_on_it_acts_are_in_the_file(tmp_path):
    """As llama.cpp's converter writes them: an array of uint32, which its reader asks for."""
    model = small("llama")
    folder = adapter_of(model, tmp_path / "a", alora=(5, 61))
    write_gguf_adapter(read_stored(folder), tmp_path / "a.gguf", base=base_of(model))
    written = GGUFReader(tmp_path / "a.gguf").fields["adapter.alora.invocation_tokens"]
    assert written.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32]
    assert written.contents() == [5, 61]
    plain = adapter_of(small("llama"), tmp_path / "b")
    write_gguf_adapter(read_stored(plain), tmp_path / "b.gguf", base=base_of(model))
    assert "adapter.alora.invocation_tokens" not in GGUFReader(tmp_path / "b.gguf").fields


def test_a_file_that_is_there_stays(tmp_path):
    model = small("llama")
    folder = adapter_of(model, tmp_path / "adapter")
    file = tmp_path / "a.gguf"
    file.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        write_gguf_adapter(read_stored(folder), file, base=base_of(model))
    assert file.read_text() == "mine"


# The reader needs a vocabulary that the converter knows in this family: transformers gives any
# qwen2 a tokenizer of its own, and phi3's and gemma2's are sentencepiece. gemma3 and GPT-2 end this
# reader's process, adapter or not.
READ = ("llama", "mistral", "qwen3")


def with_words(model: Any, folder: Path) -> Path:
    """A model folder with the built-in model's tokenizer: the converter knows tokenizers by a hash."""
    words = resolve(ModelSpec()).folder
    model.save_pretrained(folder)
    shutil.copy(words / "tokenizer.json", folder)
    settings = json.loads((words / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, tuple[Any, Path]]:
    """A model of each family and its GGUF file by llama.cpp's converter."""
    room = tmp_path_factory.mktemp("bases")
    made, jobs = {}, []
    for family in READ:
        model = small(family, vocab_size=49152)
        folder = with_words(model, room / family)
        made[family] = (model, room / f"{family}.gguf")
        jobs.append([folder, "--outtype", "f32", "--outfile", made[family][1]])
    convert("convert_hf_to_gguf.py", jobs)
    return made


@pytest.mark.smol
@pytest.mark.parametrize("family", READ)
def test_llama_cpp_answers_as_lorakit_does(bases, family, tmp_path):
    model, file = bases[family]
    targets = (ALL_LINEAR, "lm_head") if family == "llama" else (ALL_LINEAR,)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        plain = model(ids).logits[0]
        adapt(model, targets=targets, rslora=True, rank_pattern={"o_proj": 2})
        adapted = model(ids).logits[0]
    try:
        stored = read_stored(save_adapter(model, tmp_path / "adapter"))
    finally:
        detach(model)
    adapter = write_gguf_adapter(stored, tmp_path / "a.gguf", base=base_of(model))
    with LlamaCpp(file) as there:
        base_error = float((there.logits(IDS) - plain).abs().max())
    with LlamaCpp(file, adapter) as there:
        error = float((there.logits(IDS) - adapted).abs().max())
    effect = float((adapted - plain).abs().max())
    # The reader keeps values in float16, with an adapter as without one.
    assert error < 3 * base_error < 5e-3 * effect


@pytest.mark.smol
@pytest.mark.parametrize(
    ("kind", "share"),
    [
        pytest.param("f32", 1e-3, marks=pytest.mark.readers),
        pytest.param("f16", 3e-3, marks=pytest.mark.readers),
        pytest.param("bf16", 2e-2, marks=pytest.mark.readers),
        ("q8_0", 5e-2),
    ],
)
def test_a_merged_model_in_llama_cpp(kind, share, tmp_path, capsys):
    """`lorakit export --to gguf-merged` against transformers' logits of the adapted model.

    `share` is what rounding to the format may do, as a share of the adapter's effect; the reader
    rounds what it multiplies with to the same format.
    """
    model = small("llama", vocab_size=49152)
    folder = with_words(model, tmp_path / "base")
    ids = torch.tensor([IDS])
    with torch.no_grad():
        plain = model(ids).logits[0]
        adapted = adapt(model)(ids).logits[0]
    adapter = save_adapter(model, tmp_path / "adapter")
    file = tmp_path / "merged.gguf"
    code = run(
        [
            *("export", str(adapter), "--to", "gguf-merged", "--type", kind, "--out", str(file)),
            *("--model", str(folder)),
        ]
    )
    assert code == 0, capsys.readouterr().err
    with LlamaCpp(file) as there:
        error = float((there.logits(IDS) - adapted).abs().max())
    assert error < share * float((adapted - plain).abs().max())


@pytest.mark.readers
@pytest.mark.smol
def test_gpt2s_pairs_are_the_difference_of_two_converted_models(tmp_path):
    """llama.cpp's adapter converter swaps A and B of a Conv1D, so its model converter is the oracle."""
    model = small("gpt2", vocab_size=49152)
    folder, jobs = tmp_path, []
    adapter = adapter_of(model, folder / "adapter")
    for name, version in {"merged": merged_model(model), "base": detach(model)}.items():
        config = json.loads((with_words(version, folder / name) / "config.json").read_text())
        # The converter asks for a name that transformers 5 no longer writes.
        (folder / name / "config.json").write_text(json.dumps({**config, "n_ctx": 512}))
        jobs.append([folder / name, "--outtype", "f32", "--outfile", folder / f"{name}.gguf"])
    convert("convert_hf_to_gguf.py", jobs)
    file = write_gguf_adapter(read_stored(adapter), folder / "a.gguf", base=base_of(model))
    base, merged, pairs = (tensors(folder / f"{name}.gguf") for name in ("base", "merged", "a"))
    changed = [name for name in base if not np.array_equal(base[name], merged[name])]
    assert len(changed) == len(pairs) // 2 == 8
    for name in changed:
        A, B = pairs[f"{name}.lora_a"], pairs[f"{name}.lora_b"]
        delta = field(file, "adapter.lora.alpha") / len(A) * B @ A
        np.testing.assert_allclose(delta, merged[name] - base[name], atol=1e-6)
