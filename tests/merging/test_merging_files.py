"""Merging from file to file: against the merge in memory, and byte for byte where nothing moves."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import lorakit.files.shards as shards
from adapter_models import adapt
from families import tiny, tokenizer
from lorakit.adapters import load_adapter, save_adapter
from lorakit.adapters.load import fit_stored
from lorakit.adapters.pairs import read_stored
from lorakit.config import RunConfig
from lorakit.errors import (
    AdapterError,
    BaseMismatchError,
    CertificateError,
    ConfigError,
    ModelError,
    TargetError,
)
from lorakit.lora import lora_layers, variants
from lorakit.lora.changing import changes_of
from lorakit.lora.plain import PlainLora
from lorakit.lora.variant import Capability
from lorakit.merging import merged_model
from lorakit.merging.merge_files import merge_files
from lorakit.models import ModelSpec, load_model
from lorakit.models.load import empty_model
from lorakit.models.weights import OtherNamesError, find, tensors_of
from lorakit.run.commands.merging import run_merge, run_unmerge
from lorakit.run.weighted import parse_weighted

CASES = {
    "llama": ("llama", {}, {"rank": 4}),
    "rsLoRA and patterns": (
        "llama",
        {},
        {
            "rank": 4,
            "rslora": True,
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"up_proj": 1.0},
        },
    ),
    "embedding": ("llama", {}, {"targets": ("embed_tokens", "q_proj")}),
    "tied embedding": ("llama", {"tie_word_embeddings": True}, {"targets": ("embed_tokens",)}),
    "tied head": ("llama", {"tie_word_embeddings": True}, {"targets": ("lm_head", "q_proj")}),
    "tied, not adapted": ("llama", {"tie_word_embeddings": True}, {"targets": ("q_proj",)}),
    "Conv1D": ("gpt2", {}, {"targets": ("c_attn", "c_fc", "c_proj")}),
    "DoRA": ("llama", {}, {"rank": 4, "dora": True}),
    "DoRA and rsLoRA": ("llama", {}, {"rank": 4, "dora": True, "rslora": True}),
    "DoRA on an embedding": (
        "llama",
        {"tie_word_embeddings": True},
        {"targets": ("embed_tokens", "q_proj"), "dora": True},
    ),
    "DoRA on Conv1D": ("gpt2", {}, {"targets": ("c_attn", "c_fc"), "dora": True}),
    "gemma": ("gemma2", {}, {"targets": ("o_proj", "down_proj")}),
}


UNTIED = ("tied embedding", "tied head", "DoRA on an embedding")


pytestmark = pytest.mark.usefixtures("own_cache", "small_blocks")


def base_folder(tmp_path, family="llama", dtype=torch.float32, shard="1GB", **changes):
    folder = tmp_path / "base"
    tiny(family, **changes).to(dtype).save_pretrained(folder, max_shard_size=shard)
    tokenizer().save_pretrained(folder)
    return folder


def adapter_folder(tmp_path, base, name="adapter", seed=0, **spec):
    model, _ = load_model(str(base), dtype="float32")
    adapt(model, **spec)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.A.mul_(1.0 + seed)
    return save_adapter(model, tmp_path / name)


def merge(base, out, *adapters, dtype="base", certify="auto", **options):
    weighted = [a if isinstance(a, tuple) else (a, 1.0) for a in adapters]
    config = RunConfig(model=ModelSpec(model=str(base)), given=frozenset({"model"}))
    return run_merge(config, adapters=weighted, out=out, dtype=dtype, certify=certify, **options)


def tensors(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


BESIDE = {
    "norms and a head": ({}, {"modules_to_save": ("norm", "lm_head")}),
    "a head of its own": (
        {"tie_word_embeddings": True},
        {"modules_to_save": ("lm_head",), "keep_ties": False},
    ),
    "a tied head": ({"tie_word_embeddings": True}, {"modules_to_save": ("lm_head",)}),
    "rows": ({}, {"token_rows": {"embed_tokens": (3, 290)}}),
    "rows of tied weights": ({"tie_word_embeddings": True}, {"token_rows": {"": (3, 290)}}),
    "every bias": ({"attention_bias": True}, {"bias": "all"}),
    "biases of both kinds": ({"attention_bias": True}, {"bias": "lora_only", "lora_bias": True}),
}


@pytest.mark.usefixtures("own_cache", "small_blocks")
@pytest.mark.parametrize("case", BESIDE)
def test_what_is_trained_beside_pairs(case, tmp_path):
    """The folder answers as the adapter does, and stays tied where the adapter lets it."""
    changes, spec = BESIDE[case]
    base = base_folder(tmp_path, "llama", **changes)
    model, _ = load_model(str(base), dtype="float32")
    adapt(model, targets=("q_proj", "o_proj"), **spec)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for change in changes_of(model):
            noise = 0.3 * torch.randn(change.parameter.shape, generator=generator)
            rows = list(change.what.rows) or slice(None)
            change.parameter[rows] += noise[rows]
    adapter = save_adapter(model, tmp_path / "adapter")
    certificate = merge(base, tmp_path / "merged", adapter)
    assert certificate.passed
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    ids = torch.tensor([[3, 290, 7, 12]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    tied = loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert tied == (changes.get("tie_word_embeddings", False) and case != "a head of its own")


def test_a_bias_that_the_base_has_no_place_for(tmp_path):
    base = base_folder(tmp_path, "llama")
    adapter = adapter_folder(tmp_path, base, targets=("q_proj",), lora_bias=True)
    with pytest.raises(TargetError, match=r"q_proj\.bias, and the base's layer has none"):
        merge(base, tmp_path / "merged", adapter)


@pytest.mark.parametrize("case", list(CASES))
def test_the_same_model_as_in_memory(case, tmp_path):
    family, changes, spec = CASES[case]
    base = base_folder(tmp_path, family, **changes)
    adapter = adapter_folder(tmp_path, base, **spec)
    certificate = merge(base, tmp_path / "merged", adapter)
    model, _ = load_model(str(base), dtype="float32")
    load_adapter(model, adapter)
    wanted = merged_model(model).state_dict()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    found = loaded.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    was_tied = model.config.tie_word_embeddings
    assert loaded.config.tie_word_embeddings == (was_tied and case not in UNTIED)
    assert certificate.passed
    assert len(certificate.comparisons) == 2
    assert len(certificate.weights.merged) == len(lora_layers(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_entry_is_the_float64_sum_rounded_once(dtype, tmp_path):
    base = base_folder(tmp_path, dtype=dtype)
    adapter = adapter_folder(tmp_path, base, targets=("q_proj", "down_proj"))
    certificate = merge(base, tmp_path / "merged", adapter, certify="weights")
    before, after = tensors(base), tensors(tmp_path / "merged")
    pairs = read_stored(adapter).pairs
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        pair = pairs.get(name.removesuffix(".weight"))
        if pair is None:
            assert torch.equal(after[name], tensor)
            continue
        exact = tensor.double() + pair.scale * pair.B.double() @ pair.A.double()
        assert after[name].dtype == dtype
        gap = (after[name].double() - exact).abs()
        # Half a unit in the last place, and float32's own rounding before it.
        assert (gap <= exact.abs() * torch.finfo(dtype).eps / 2 + 2e-6).all()
        (check,) = [c for c in certificate.weights.merged if c.name == name]
        assert check.largest_error == pytest.approx(float(gap.max()), rel=1e-9)
        lost = gap.norm() / (exact - tensor.double()).norm()
        assert check.update_lost == pytest.approx(float(lost), rel=1e-9)


@pytest.mark.parametrize(
    ("family", "target"), [("llama", "down_proj"), ("gpt2", "c_fc"), ("llama", "embed_tokens")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_entry_of_a_row_with_a_factor_is_rounded_once(family, target, dtype, tmp_path):
    base = base_folder(tmp_path, family, dtype)
    adapter = adapter_folder(tmp_path, base, targets=(target,), dora=True)
    certificate = merge(base, tmp_path / "merged", adapter, certify="weights")
    before, after = tensors(base), tensors(tmp_path / "merged")
    for path, pair in read_stored(adapter).pairs.items():
        name = next(n for n in before if n.endswith(f"{path}.weight"))
        W, found = before[name].double(), after[name].double()
        if family == "gpt2" or target == "embed_tokens":
            W, found = W.T, found.T
        sum_OI = W + pair.scale * pair.B.double() @ pair.A.double()
        m = pair.more["magnitude"].double()
        exact = torch.stack([m[o] * row / row.norm() for o, row in enumerate(sum_OI)])
        gap = (found - exact).abs()
        assert (gap <= exact.abs() * torch.finfo(dtype).eps / 2 + 2e-6).all()
        (check,) = [c for c in certificate.weights.merged if c.name == name]
        assert check.largest_error == pytest.approx(float(gap.max()), rel=1e-6)
        assert check.update_lost == pytest.approx(float(gap.norm() / (exact - W).norm()), rel=1e-6)


def test_shards_and_index_stay_as_they_were(tmp_path):
    base = base_folder(tmp_path, shard="60KB")
    adapter = adapter_folder(tmp_path, base, targets=("q_proj",))
    merge(base, tmp_path / "merged", adapter)
    names = sorted(f.name for f in base.glob("*.safetensors*"))
    assert len(names) > 3
    assert sorted(f.name for f in (tmp_path / "merged").glob("*.safetensors*")) == names
    index = "model.safetensors.index.json"
    old, new = (json.loads((f / index).read_text()) for f in (base, tmp_path / "merged"))
    assert new["weight_map"] == old["weight_map"]
    assert new["metadata"]["total_size"] == old["metadata"]["total_size"]
    for file in base.glob("*.safetensors"):
        if not any("q_proj" in name for name in load_file(file)):
            assert (tmp_path / "merged" / file.name).read_bytes() == file.read_bytes()


def test_another_format(tmp_path):
    base = base_folder(tmp_path)
    adapter = adapter_folder(tmp_path, base, targets=("q_proj",))
    certificate = merge(base, tmp_path / "merged", adapter, dtype="bfloat16")
    assert {t.dtype for t in tensors(tmp_path / "merged").values()} == {torch.bfloat16}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert [c.dtype for c in certificate.comparisons] == ["float32", "bfloat16"]
    assert 0.5 < max(c.largest_rounding for c in certificate.weights.merged) <= 1.001


def test_several_with_weights(tmp_path):
    base = base_folder(tmp_path)
    one = adapter_folder(tmp_path, base, "one", targets=("q_proj", "up_proj"))
    two = adapter_folder(tmp_path, base, "two", seed=1, rank=3, targets=("up_proj",))
    certificate = merge(base, tmp_path / "merged", (one, 0.7), (two, -0.4))
    assert certificate.passed
    before, after = tensors(base), tensors(tmp_path / "merged")
    for name, tensor in before.items():
        exact = tensor.double()
        for folder, weight in ((one, 0.7), (two, -0.4)):
            if pair := read_stored(folder).pairs.get(name.removesuffix(".weight")):
                exact = exact + weight * pair.scale * pair.B.double() @ pair.A.double()
        # Both are kept in float64 until the one rounding.
        assert torch.equal(after[name], exact.float())
    told = json.loads((tmp_path / "merged" / "certificate.json").read_text())
    assert [(a["name"], a["weight"]) for a in told["made_of"]["adapters"]] == [
        (str(one), 0.7),
        (str(two), -0.4),
    ]


def test_the_certificate_says_what_was_compared(tmp_path):
    base = base_folder(tmp_path)
    adapter = adapter_folder(tmp_path, base, targets=("q_proj",))
    made = merge(base, tmp_path / "merged", adapter, certify="weights")
    told = json.loads((tmp_path / "merged" / "certificate.json").read_text())
    assert told == json.loads(json.dumps(made.to_dict()))
    assert told["comparisons"] == []
    assert told["notes"] == ["logits were not compared, as asked"]
    assert told["weights"]["passed"]
    assert told["weights"]["copied"] == len(tensors(base)) - 2
    assert told["made_of"]["base"]["name"] == "base"


def test_a_model_that_is_too_large_is_certified_by_its_weights(tmp_path, monkeypatch):
    base = base_folder(tmp_path)
    adapter = adapter_folder(tmp_path, base, targets=("q_proj",))
    monkeypatch.setattr("lorakit.run.commands.certifying.free_memory", lambda device: 1000)
    made = merge(base, tmp_path / "merged", adapter)
    assert made.comparisons == ()
    assert "that needs the model twice in float32" in made.notes[0]
    assert merge(base, tmp_path / "asked", adapter, certify="logits").comparisons


class TestUndo:
    def test_the_bases_bytes(self, tmp_path):
        base = base_folder(tmp_path, dtype=torch.bfloat16, shard="60KB")
        adapter = adapter_folder(tmp_path, base, targets=("q_proj",))
        merge(base, tmp_path / "merged", adapter)
        config = RunConfig(model=ModelSpec(model=str(base)))
        back = tmp_path / "back"
        run_unmerge(config, merged=tmp_path / "merged", out=back, progress=lambda *a: None)
        assert sorted(f.name for f in back.iterdir()) == sorted(f.name for f in base.iterdir())
        for file in base.iterdir():
            assert (back / file.name).read_bytes() == file.read_bytes()

    def test_another_base(self, tmp_path):
        base = base_folder(tmp_path)
        adapter = adapter_folder(tmp_path, base, targets=("q_proj",))
        merge(base, tmp_path / "merged", adapter)
        weights = load_file(base / "model.safetensors")
        weights["model.norm.weight"][3] += 1.0
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
        config = RunConfig(model=ModelSpec(model=str(base)))
        with pytest.raises(BaseMismatchError, match=r"was made of 'base' .* is another"):
            run_unmerge(
                config, merged=tmp_path / "merged", out=tmp_path / "b", progress=lambda *a: None
            )

    def test_no_merged_folder(self, tmp_path):
        base = base_folder(tmp_path)
        config = RunConfig(model=ModelSpec(model=str(base)))
        with pytest.raises(ModelError, match=r"has no certificate\.json: it is no folder"):
            run_unmerge(config, merged=base, out=tmp_path / "b", progress=lambda *a: None)


class TestRefusals:
    def test_what_the_format_cannot_hold(self, tmp_path):
        base = base_folder(tmp_path, dtype=torch.float16)
        model, _ = load_model(str(base), dtype="float32")
        adapt(model, targets=("q_proj",))
        with torch.no_grad():
            next(iter(lora_layers(model).values())).B.mul_(1e7)
        adapter = save_adapter(model, tmp_path / "adapter")
        with pytest.raises(CertificateError, match="the merged weights, read back, are not W"):
            merge(base, tmp_path / "merged", adapter)
        assert not (tmp_path / "merged").exists()

    def test_integers(self, tmp_path):
        base = base_folder(tmp_path)
        adapter = adapter_folder(tmp_path, base, targets=("q_proj",))
        weights = load_file(base / "model.safetensors")
        name = "model.layers.0.self_attn.q_proj.weight"
        weights[name] = weights[name].to(torch.int8)
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(TargetError, match="is kept as I8 and cannot take"):
            merge(base, tmp_path / "merged", adapter, force=True)

    def test_another_base(self, tmp_path):
        base = base_folder(tmp_path)
        adapter = adapter_folder(tmp_path, base, targets=("q_proj",))
        other = tmp_path / "other"
        tiny("llama", seed=1).save_pretrained(other)
        tokenizer().save_pretrained(other)
        with pytest.raises(BaseMismatchError, match="was trained on 'base'"):
            merge(other, tmp_path / "merged", adapter)
        assert merge(other, tmp_path / "merged", adapter, force=True).passed

    def test_names_that_transformers_makes_of_others(self, tmp_path):
        base = base_folder(tmp_path)
        held = tensors_of(base)
        model = empty_model(str(base))
        name = "model.layers.0.self_attn.q_proj.weight"
        held.pop(name)
        with pytest.raises(OtherNamesError, match="transformers makes it of others"):
            find(model, [name], held)

    def test_another_shape(self, tmp_path):
        base = base_folder(tmp_path)
        held = tensors_of(base)
        name = "model.layers.0.self_attn.q_proj.weight"
        held[name] = replace(held[name], entry=replace(held[name].entry, shape=(3, 4)))
        with pytest.raises(ModelError, match=r"is \(3, 4\), and config.json makes it \(48, 48\)"):
            find(empty_model(str(base)), [name], held)


def test_a_tie_that_the_files_keep_twice(tmp_path):
    """Some folders hold the head beside the embedding although both are one weight."""
    base = base_folder(tmp_path, tie_word_embeddings=True)
    adapter = adapter_folder(tmp_path, base, targets=("lm_head",))
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = torch.full_like(weights["model.embed_tokens.weight"], 7.0)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    merge(base, tmp_path / "merged", adapter, force=True)
    after = tensors(tmp_path / "merged")
    assert torch.equal(after["model.embed_tokens.weight"], weights["model.embed_tokens.weight"])
    (pair,) = read_stored(adapter).pairs.values()
    exact = 7.0 + pair.delta()  # transformers, too, takes the head that the folder holds
    torch.testing.assert_close(after["lm_head.weight"], exact, rtol=0, atol=1e-6)


def test_files_without_the_prefix_of_the_model(tmp_path):
    """GPT-2's own files say h.0.… where the model says transformer.h.0.…"""
    base = base_folder(tmp_path, "gpt2")
    adapter = adapter_folder(tmp_path, base, targets=("c_attn",))
    weights = load_file(base / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    assert short.keys() != weights.keys()
    save_file(short, base / "model.safetensors", metadata={"format": "pt"})
    merge(base, tmp_path / "merged", adapter, force=True)
    after = tensors(tmp_path / "merged")
    assert after.keys() == short.keys()
    for path, pair in read_stored(adapter).pairs.items():
        name = f"{path.removeprefix('transformer.')}.weight"
        exact = short[name] + pair.scale * (pair.B @ pair.A).T
        torch.testing.assert_close(after[name], exact, rtol=0, atol=1e-6)


def test_a_wrong_file_is_not_certified(tmp_path, monkeypatch):
    """The check reads the disk: what was written wrong is found."""
    base = base_folder(tmp_path)
    adapter = read_stored(adapter_folder(tmp_path, base, targets=("q_proj",)))
    model = empty_model(str(base))
    plan, _ = fit_stored(model, adapter)
    held = tensors_of(base)
    places = find(model, [f"{t.path}.weight" for t in plan.targets], held)
    right = shards.write_stream

    def damaging(path, planned):
        right(path, planned)
        content = bytearray(path.read_bytes())
        with safe_open(path, framework="pt") as file:
            assert name in file.keys()  # noqa: SIM118
        entry = tensors_of(path.parent)[name].entry
        content[entry.start + 3] ^= 0x10
        path.write_bytes(content)

    name = plan.targets[0].path + ".weight"
    monkeypatch.setattr(shards, "write_stream", damaging)
    out = tmp_path / "out"
    out.mkdir()
    report = merge_files(places, held, plan, adapter.pairs, out)
    assert [check.name for check in report.merged if not check.passed] == [name]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ("a", 1.0)),
        ("a:0.7", ("a", 0.7)),
        ("runs/x/adapter:-1", ("runs/x/adapter", -1.0)),
        ("C:\\x", ("C:\\x", 1.0)),
        ("inv@3:2e-1", ("inv@3", 0.2)),
    ],
)
def test_weights_behind_a_colon(text, expected):
    assert parse_weighted(text) == expected


def test_a_weight_that_is_no_number():
    with pytest.raises(
        ConfigError, match=r"'invoices:o\.7': the weight 'o\.7' is no number; write NAME"
    ):
        parse_weighted("invoices:o.7")


def test_a_path_that_ends_like_a_weight(tmp_path):
    folder = tmp_path / "a:0.7"
    folder.mkdir()
    assert parse_weighted(str(folder)) == (str(folder), 1.0)


def test_a_model_that_is_put_together_while_it_loads(tmp_path, monkeypatch):
    """Its parameters have other names in the files: merged whole, in memory, and said so."""
    base = base_folder(tmp_path)
    adapter = adapter_folder(tmp_path, base, targets=("q_proj",))

    def nowhere(*_):
        raise OtherNamesError("the files of this model hold no tensor")

    monkeypatch.setattr("lorakit.run.commands.merging.by_files", nowhere)
    certificate = merge(base, tmp_path / "merged", adapter)
    assert certificate.weights is None
    assert len(certificate.comparisons) == 2
    told = json.loads((tmp_path / "merged" / "certificate.json").read_text())
    assert told["notes"][0].startswith("merged in memory and not file by file: the files of")
    assert told["made_of"]["base"]["name"] == "base"
    with pytest.raises(OtherNamesError):
        merge(base, tmp_path / "checked", adapter, certify="weights")


def test_a_variant_that_is_not_merged_by_rows(tmp_path, monkeypatch):
    """It is merged whole, in memory, and said so; weights alone cannot be certified then."""
    base = base_folder(tmp_path)
    adapter = adapter_folder(tmp_path, base, targets=("q_proj",))
    whole = PlainLora("Whole", capabilities=frozenset({Capability.KERNELS, Capability.MERGE}))
    monkeypatch.setattr(variants, "VARIANTS", (whole, *variants.VARIANTS[1:]))
    certificate = merge(base, tmp_path / "merged", adapter)
    assert certificate.weights is None
    assert len(certificate.comparisons) == 2
    told = json.loads((tmp_path / "merged" / "certificate.json").read_text())
    assert told["notes"] == [
        "merged in memory and not file by file: the variant Whole cannot be merged into files, "
        "one block of rows after the other"
    ]
    with pytest.raises(AdapterError, match=r"cannot be merged into files.*merge it in memory"):
        merge(base, tmp_path / "checked", adapter, certify="weights")
