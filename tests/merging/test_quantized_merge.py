"""Merging into quantized folders: against levels written out here, and against bitsandbytes itself."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import tiny, tokenizer
from lorakit.adapters import save_adapter
from lorakit.adapters.pairs import read_stored
from lorakit.config import RunConfig
from lorakit.errors import ConfigError, ModelError, TargetError
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.merging.dequantize import dequantize
from lorakit.merging.survival import Survival
from lorakit.models import ModelSpec
from lorakit.run.commands.merging import run_merge

# QLoRA's table, appendix E.
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


pytestmark = pytest.mark.usefixtures("own_cache", "small_blocks")


def nf4_by_hand(W):
    """Nearest level of each number in blocks of 64, in float64."""
    flat, levels = W.double().flatten(), torch.tensor(LEVELS, dtype=torch.float64)
    parts = []
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        scale = block.abs().max()
        nearest = (block[:, None] / scale - levels).abs().argmin(1)
        parts.append(levels[nearest] * scale)
    return torch.cat(parts).view(W.shape)


def int8_by_hand(W):
    scale = W.double().abs().amax(1, keepdim=True) / 127
    return (W.double() / scale).round() * scale


BY_HAND = {"nf4": nf4_by_hand, "int8": int8_by_hand}


def plain_folder(tmp_path, dtype=torch.float32, **changes):
    folder = tmp_path / "base"
    tiny("llama", **changes).to(dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def adapter_of(tmp_path, size, family="llama", model=None, **spec):
    """An adapter whose updates have `size` times the norm of their weights."""
    model = model or tiny(family)
    attach(model, LoraSpec(**{"rank": 4, "alpha": 8.0} | spec))
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.A.normal_(generator=g)
            layer.B.normal_(generator=g)
            layer.B.mul_(size * layer.weight.norm() / layer.delta().norm())
    folder = tmp_path / f"adapter {size}"
    save_adapter(model, folder)
    return folder


def merge(base, adapter, out, **options):
    config = RunConfig(model=ModelSpec(model=str(base)))
    options = {"dtype": "base", "certify": "auto"} | options
    return run_merge(config, adapters=[(adapter, 1.0)], out=out, **options)


def dequantized(folder, tmp_path, name="read"):
    """By the reader that was there before, which test_dequantizing.py holds against bitsandbytes."""
    out = tmp_path / name
    out.mkdir()
    dequantize(folder, out)
    return load_file(out / "model.safetensors")


def update_of(adapter, path):
    pair = read_stored(adapter).pairs[path]
    return pair.scale * pair.B.double() @ pair.A.double()


@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_a_plain_base_is_quantized_once(tmp_path, form):
    base, adapter = plain_folder(tmp_path), adapter_of(tmp_path, 0.02)
    certificate = merge(base, adapter, tmp_path / "merged", quantize=form)
    written = load_file(tmp_path / "merged" / "model.safetensors")
    found, before = (
        dequantized(tmp_path / "merged", tmp_path),
        load_file(base / "model.safetensors"),
    )
    assert found.keys() == before.keys()
    both = size = 0.0
    for name, W in before.items():
        if "_proj" not in name:
            assert torch.equal(written[name], W)
            continue
        update = update_of(adapter, name.removesuffix(".weight"))
        exact = W.double() + update
        torch.testing.assert_close(
            found[name].double(), BY_HAND[form](exact.float()), rtol=1e-5, atol=1e-6
        )
        change = found[name].double() - BY_HAND[form](W)
        both, size = both + (change * update).sum(), size + (update * update).sum()
    survived = certificate.weights.survival
    assert survived.share == pytest.approx(float(both / size), rel=1e-3)
    assert survived.share == pytest.approx(1.0, abs=0.25)  # all of it, on average
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "bitsandbytes"
    assert config["quantization_config"]["llm_int8_skip_modules"] == ["lm_head"]
    stored = json.loads((tmp_path / "merged" / "certificate.json").read_text())
    assert stored["weights"]["update_survived"]["share"] == survived.share
    by_layer = [row for row in stored["weights"]["quantized"] if row["survival"]]
    assert len(by_layer) == 14
    assert "survived" in str(certificate.weights)


def on_levels(tmp_path, form):
    """A quantized base of real numbers, and the folder in full precision that it was made of."""
    full = plain_folder(tmp_path)
    adapter = adapter_of(tmp_path, 0.0)
    merge(full, adapter, tmp_path / "quantized", quantize=form)
    (tmp_path / "quantized" / "certificate.json").unlink()
    return full, tmp_path / "quantized"


class TestOntoLevels:
    @pytest.mark.parametrize(("form", "most"), [("nf4", 0.15), ("int8", 1.05)])
    def test_little_of_a_small_update_arrives(self, tmp_path, form, most):
        full, base = on_levels(tmp_path, form)
        adapter = adapter_of(tmp_path, 0.005)
        certificate = merge(base, adapter, tmp_path / "merged", quantize="base", force=True)
        name = "model.layers.0.mlp.up_proj"
        W_q = BY_HAND[form](load_file(full / "model.safetensors")[f"{name}.weight"])
        update = update_of(adapter, name)
        change = BY_HAND[form]((W_q + update).float()) - W_q
        share = float((change * update).sum() / (update * update).sum())
        cosine = float((change * update).sum() / update.norm() / change.norm())
        row = next(c for c in certificate.weights.quantized if name in c.name)
        assert row.survival.share == pytest.approx(share, abs=0.02)
        assert row.survival.cosine == pytest.approx(cosine, abs=0.02)
        assert certificate.weights.survival.share < most
        said = [note for note in certificate.notes if "survived" in note]
        if form == "nf4":
            assert "the base lies on nf4's levels already" in said[0]
            assert "--full-base FOLDER" in said[0]
            assert "--merge-aware nf4" in said[0]

    @pytest.mark.parametrize("form", ["nf4", "int8"])
    def test_full_base_keeps_it(self, tmp_path, form):
        full, base = on_levels(tmp_path, form)
        adapter = adapter_of(tmp_path, 0.02)
        kept = merge(base, adapter, tmp_path / "kept", full_base=str(full), force=True)
        name = "model.layers.1.self_attn.v_proj"
        W = load_file(full / "model.safetensors")[f"{name}.weight"]
        update = update_of(adapter, name)
        change = BY_HAND[form]((W + update).float()) - BY_HAND[form](W)
        share = float((change * update).sum() / (update * update).sum())
        row = next(c for c in kept.weights.quantized if name in c.name)
        assert row.survival.share == pytest.approx(share, abs=0.02)
        assert kept.weights.survival.share == pytest.approx(1.0, abs=0.2)
        assert not any("only" in note for note in kept.notes)
        found = dequantized(tmp_path / "kept", tmp_path)[f"{name}.weight"].double()
        torch.testing.assert_close(found, BY_HAND[form]((W + update).float()), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("form", ["nf4", "int8"])
    def test_what_no_pair_changes_is_copied(self, tmp_path, form):
        _, base = on_levels(tmp_path, form)
        adapter = adapter_of(tmp_path, 0.05, targets=("q_proj",))
        certificate = merge(base, adapter, tmp_path / "merged", quantize="base", force=True)
        before = load_file(base / "model.safetensors")
        after = load_file(tmp_path / "merged" / "model.safetensors")
        assert after.keys() == before.keys()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed
        assert all("q_proj" in name for name in changed)
        assert certificate.passed

    def test_from_one_format_into_the_other(self, tmp_path):
        full, base = on_levels(tmp_path, "int8")
        adapter = adapter_of(tmp_path, 0.05)
        merge(base, adapter, tmp_path / "merged", quantize="nf4", force=True)
        name = "model.layers.0.self_attn.o_proj"
        W = int8_by_hand(load_file(full / "model.safetensors")[f"{name}.weight"])
        wanted = nf4_by_hand((W + update_of(adapter, name)).float())
        found = dequantized(tmp_path / "merged", tmp_path)[f"{name}.weight"].double()
        close = (found - wanted).abs() <= 1e-5
        assert (
            close.float().mean() > 0.999
        )  # a number in the middle of two levels may go either way

    def test_full_precision_stays_the_default(self, tmp_path):
        _, base = on_levels(tmp_path, "nf4")
        adapter = adapter_of(tmp_path, 0.05)
        merge(base, adapter, tmp_path / "merged", force=True)
        assert "quantization_config" not in json.loads(
            (tmp_path / "merged" / "config.json").read_text()
        )


@pytest.mark.parametrize("width", [42, 48, 66])
def test_blocks_that_lie_over_the_ends_of_rows(tmp_path, width):
    model = tiny("llama", hidden_size=width, intermediate_size=width + 7)
    base, adapter = tmp_path / "base", adapter_of(tmp_path, 0.02, model=model)
    plain = tiny("llama", hidden_size=width, intermediate_size=width + 7)
    plain.save_pretrained(base)
    tokenizer().save_pretrained(base)
    certificate = merge(base, adapter, tmp_path / "merged", quantize="nf4")
    assert certificate.passed
    assert any("of bitsandbytes 0.50.2 for a CPU" in note for note in certificate.notes)
    found = dequantized(tmp_path / "merged", tmp_path)
    for path in ("model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"):
        W = plain.get_submodule(path).weight.detach()
        wanted = nf4_by_hand((W + update_of(adapter, path)).float())
        torch.testing.assert_close(found[f"{path}.weight"].double(), wanted, rtol=1e-5, atol=1e-6)


def test_an_adapted_head_stays_in_floats(tmp_path):
    base = plain_folder(tmp_path, dtype=torch.bfloat16, tie_word_embeddings=True)
    model = tiny("llama", tie_word_embeddings=True)
    adapter = adapter_of(tmp_path, 0.05, model=model, targets=("lm_head", "q_proj"))
    certificate = merge(base, adapter, tmp_path / "merged", quantize="int8")
    assert [check.name for check in certificate.weights.merged] == ["lm_head.weight"]
    found = load_file(tmp_path / "merged" / "model.safetensors")
    before = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(found["model.embed_tokens.weight"], before)
    exact = before.double() + update_of(adapter, "lm_head")
    assert found["lm_head.weight"].dtype == torch.bfloat16
    assert ((found["lm_head.weight"].double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()
    assert not json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"]


def bitsandbytes_folder(full, folder, **settings):
    """Written by transformers and bitsandbytes themselves."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        full, quantization_config=BitsAndBytesConfig(**settings), dtype=torch.float32
    )
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


# bitsandbytes' CPU kernel (0.50.2) dequantizes other numbers where a row ends within a block.
WHOLE_BLOCKS = {"hidden_size": 192, "intermediate_size": 256, "head_dim": 32}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
SETTINGS = {"nf4": NF4, "int8": {"load_in_8bit": True}}


def weights_as_loaded(folder):
    """Linear weights as bitsandbytes dequantizes them in the model that transformers loads."""
    functional = pytest.importorskip("bitsandbytes.functional")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = {}
    for path, module in model.named_modules():
        kind = type(module).__name__
        if kind == "Linear4bit":
            state = module.weight.quant_state
            weights[path] = functional.dequantize_4bit(module.weight.data, state)
        elif kind == "Linear8bitLt":
            weights[path] = functional.int8_vectorwise_dequant(
                module.weight.data, module.weight.SCB
            )
    return model, weights


@pytest.mark.parametrize("form", ["nf4", "int8"])
@pytest.mark.parametrize("quantized", [False, True])
def test_transformers_and_bitsandbytes_load_it(tmp_path, form, quantized):
    full = plain_folder(tmp_path, **WHOLE_BLOCKS)
    base = full
    if quantized:
        base = bitsandbytes_folder(full, tmp_path / "quantized", **SETTINGS[form])
    adapter = adapter_of(tmp_path, 0.05, model=tiny("llama", **WHOLE_BLOCKS))
    certificate = merge(base, adapter, tmp_path / "merged", quantize=form, force=True)
    assert not any("for a CPU" in note for note in certificate.notes)
    model, found = weights_as_loaded(tmp_path / "merged")
    assert len(found) == 14
    assert type(model.lm_head) is torch.nn.Linear
    bases = weights_as_loaded(base)[1] if quantized else {}
    for path, weight in found.items():
        W = bases.get(path, tiny("llama", **WHOLE_BLOCKS).get_submodule(path).weight.detach())
        wanted = BY_HAND[form]((W.double() + update_of(adapter, path)).float())
        close = (weight.double() - wanted).abs() <= 1e-5
        assert close.float().mean() > 0.999
    plain = tiny("llama", **WHOLE_BLOCKS)
    with torch.no_grad():
        for path, weight in found.items():
            plain.get_submodule(path).weight.copy_(weight)
        ids = torch.arange(3, 23)[None]
        ours, theirs = plain(ids).logits, model(ids).logits
    # It computes in bfloat16 on some processors, and LLM.int8 rounds activations to 8 bits.
    assert (ours - theirs).norm() <= (0.07 if form == "nf4" else 0.2) * ours.norm()


def test_bitsandbytes_quantizes_the_same(tmp_path):
    full = plain_folder(tmp_path, **WHOLE_BLOCKS)
    merge(
        full,
        adapter_of(tmp_path, 0.0, model=tiny("llama", **WHOLE_BLOCKS)),
        tmp_path / "ours",
        quantize="nf4",
    )
    theirs = bitsandbytes_folder(full, tmp_path / "theirs", **NF4)
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    their = load_file(theirs / "model.safetensors")
    assert ours.keys() == their.keys()
    for name, tensor in their.items():
        assert ours[name].dtype == tensor.dtype, name
        if "quant_state" in name:
            states = [json.loads(bytes(t.tolist())) for t in (ours[name], tensor)]
            assert states[0] == states[1]
        else:
            assert ours[name].shape == tensor.shape, name
            same = ours[name] == tensor
            assert same.float().mean() > 0.999, name


def test_scales_of_scales_are_read(tmp_path):
    full = plain_folder(tmp_path, **WHOLE_BLOCKS)
    base = bitsandbytes_folder(full, tmp_path / "q", **NF4, bnb_4bit_use_double_quant=True)
    adapter = adapter_of(tmp_path, 0.05, model=tiny("llama", **WHOLE_BLOCKS), targets=("q_proj",))
    merge(base, adapter, tmp_path / "merged", quantize="base", force=True)
    before, after = weights_as_loaded(base)[1], weights_as_loaded(tmp_path / "merged")[1]
    for path, weight in before.items():
        if "q_proj" not in path:
            torch.testing.assert_close(after[path], weight, rtol=1e-6, atol=1e-7)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_use_double_quant"] is False


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"quantize": "int4"}, "no folder that keeps a weight as lorakit's int4 does"),
            ({"quantize": "fp8"}, "lorakit export --to gguf --quantize"),
            ({"quantize": "q5"}, "is no format that merging writes"),
            ({"quantize": "nf4", "dtype": "bfloat16"}, "leave one of them out"),
            ({"quantize": "nf4", "certify": "logits"}, "what share of the update arrived"),
            ({"quantize": "base"}, "is in full precision: --quantize nf4"),
            ({"full_base": "elsewhere"}, "--full-base is for a base that is quantized"),
        ],
    )
    def test_options(self, tmp_path, options, said):
        base, adapter = plain_folder(tmp_path), adapter_of(tmp_path, 0.02)
        with pytest.raises(ConfigError, match=said):
            merge(base, adapter, tmp_path / "merged", **options)
        assert not (tmp_path / "merged").exists()

    def test_another_models_full_base(self, tmp_path):
        _, base = on_levels(tmp_path, "nf4")
        adapter = adapter_of(tmp_path, 0.02)
        other = tmp_path / "other"
        model = tiny("llama")
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(std=0.3)
        model.save_pretrained(other)
        with pytest.raises(ModelError, match="--full-base is another model: its weights are 1"):
            merge(base, adapter, tmp_path / "merged", full_base=str(other), force=True)
        tiny("llama", intermediate_size=72).save_pretrained(tmp_path / "wide")
        with pytest.raises(ModelError, match="--full-base is another model: the base's"):
            merge(base, adapter, tmp_path / "m", full_base=str(tmp_path / "wide"), force=True)
        with pytest.raises(ModelError, match="is quantized itself"):
            merge(base, adapter, tmp_path / "m", full_base=str(base), force=True)
        assert [f for f in tmp_path.iterdir() if f.name.startswith(("tmp", "m"))] == []

    def test_blocks_of_another_size(self, tmp_path):
        _, base = on_levels(tmp_path, "nf4")
        tensors = load_file(base / "model.safetensors")
        for name in tensors:
            if "quant_state" in name:
                state = json.loads(bytes(tensors[name].tolist())) | {"blocksize": 128}
                tensors[name] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match="quantized in blocks of 128"):
            merge(base, adapter_of(tmp_path, 0.02), tmp_path / "m", quantize="base", force=True)

    def test_nothing_to_quantize(self, tmp_path):
        base = tmp_path / "base"
        tiny("gpt2").save_pretrained(base)
        tokenizer().save_pretrained(base)
        adapter = adapter_of(tmp_path, 0.02, family="gpt2", targets=("c_attn",))
        with pytest.raises(TargetError, match="has no linear layer that bitsandbytes"):
            merge(base, adapter, tmp_path / "merged", quantize="nf4")

    def test_a_weight_that_is_no_number(self, tmp_path):
        base, adapter = plain_folder(tmp_path), adapter_of(tmp_path, 0.02)
        tensors = load_file(base / "model.safetensors")
        tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = math.nan
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match="is not finite once it is merged"):
            merge(base, adapter, tmp_path / "merged", quantize="nf4", force=True)
        assert not (tmp_path / "merged").exists()


def test_survival_by_hand():
    update, change = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])
    found = Survival.of(update, change)
    assert found.share == pytest.approx(9 / 25)
    assert found.cosine == pytest.approx(9 / (5 * 3))
    assert Survival.of(update, torch.zeros(2)).cosine == 0.0
    assert Survival.of(torch.zeros(2), torch.zeros(2)).share == 1.0
    both = Survival.total([found, Survival.of(torch.tensor([5.0]), torch.tensor([5.0]))])
    assert both.share == pytest.approx((9 + 25) / 50)
