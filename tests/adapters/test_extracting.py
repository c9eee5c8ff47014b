"""An adapter out of two models: exact where the difference has the rank, else Eckart and Young."""

import json

import pytest
import torch

from adapter_models import adapt, logits, tiny_llama
from families import tiny, tokenizer
from lorakit.adapters import load_adapter, save_adapter
from lorakit.adapters.pairs import read_stored
from lorakit.adapters.shrink import shrink
from lorakit.adapters.specs import ShrinkSpec
from lorakit.config import RunConfig
from lorakit.errors import AdapterError, ConfigError, ModelError
from lorakit.lora import LoraSpec, lora_layers
from lorakit.merging import merged_model
from lorakit.models import ModelSpec, load_model
from lorakit.run.commands.shaping import Output, run_extract

IDS = torch.tensor([[7, 40, 41, 99, 200, 3]])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))


def save(model, folder):
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def run(base, tuned, out, targets=("all-linear",), rank=None, energy=None):
    config = RunConfig(model=ModelSpec(model=str(base)), lora=LoraSpec(targets=targets))
    made, _ = run_extract(config, str(tuned), Output(out=out), rank=rank, energy=energy)
    return made


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_merged_adapter_comes_back(family, tmp_path):
    targets = ("q_proj", "down_proj") if family == "llama" else ("c_attn", "c_fc")
    base = save(tiny(family), tmp_path / "base")
    adapted = adapt(tiny(family), rank=3, targets=targets)
    tuned = save(merged_model(adapted), tmp_path / "tuned")
    made = run(base, tuned, tmp_path / "out", rank=3)
    assert {layer.path for layer in made.layers} == set(lora_layers(adapted))
    assert max(layer.lost for layer in made.layers) <= 1e-5  # what rounding W' to float32 added
    assert made.left == ()
    assert len(made.unchanged) == 14 - 4 if family == "llama" else 8 - 4
    model, _ = load_model(str(base), dtype="float32")
    info = load_adapter(model, tmp_path / "out")
    assert info.base["name"] == "base"
    with torch.no_grad():
        gap = (model(IDS).logits - adapted(IDS).logits).abs().max()
    assert gap <= 1e-4


def moved(tmp_path, embedding=False):
    base = save(tiny("llama"), tmp_path / "base")
    model = tiny("llama")
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "norm" in name or (embedding and "embed" in name):
                parameter += 0.1 * torch.randn(parameter.shape, generator=g)
    return base, save(model, tmp_path / "tuned")


@pytest.mark.parametrize("limits", [{"rank": 5}, {"energy": 0.8}])
def test_the_residual_is_what_was_cut(limits, tmp_path):
    base, tuned = moved(tmp_path)
    made = run(base, tuned, tmp_path / "out", **limits)
    one, two = (load_model(str(f), dtype="float32")[0].state_dict() for f in (base, tuned))
    pairs = read_stored(tmp_path / "out").pairs
    assert len(made.layers) == len(pairs) == 2
    for layer in made.layers:
        W = one[f"{layer.path}.weight"].double()
        difference = two[f"{layer.path}.weight"].double() - W
        values = torch.linalg.svdvals(difference)
        pair = pairs[layer.path]
        error = (difference - pair.B.double() @ pair.A.double()).norm() / values.norm()
        assert layer.lost == pytest.approx(float(values[layer.rank :].norm() / values.norm()))
        assert layer.lost == pytest.approx(float(error), abs=1e-6)
        assert layer.norm == pytest.approx(float(values.norm()))
        assert layer.relative == pytest.approx(float(values.norm() / W.norm()))
        shares = values.square().cumsum(0) / values.square().sum()
        assert layer.rank == limits.get("rank") or (
            shares[layer.rank - 1] >= 0.8 > shares[layer.rank - 2]
        )


def test_what_differs_without_a_pair_is_named_and_recorded(tmp_path):
    base, tuned = moved(tmp_path, embedding=True)
    made = run(base, tuned, tmp_path / "out", rank=4)
    names = {item.name for item in made.left}
    assert names == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        *(
            f"model.layers.{i}.{kind}.weight"
            for i in (0, 1)
            for kind in ("input_layernorm", "post_attention_layernorm")
        ),
    }
    one, two = (load_model(str(f), dtype="float32")[0].state_dict() for f in (base, tuned))
    (item,) = [i for i in made.left if i.name == "model.norm.weight"]
    W, moved_to = one[item.name], two[item.name]
    assert item.relative == pytest.approx(float((moved_to - W).norm() / W.norm()), rel=1e-5)
    told = json.loads((tmp_path / "out" / "lorakit.json").read_text())["provenance"]
    assert {row["name"] for row in told["not_adapted"]} == names
    assert [row["path"] for row in told["layers"]] == [layer.path for layer in made.layers]
    assert told["tuned"]["name"] == "tuned"


def test_an_embedding_can_have_a_pair(tmp_path):
    base, tuned = moved(tmp_path, embedding=True)
    run(base, tuned, tmp_path / "out", targets=("embed_tokens",), rank=48)
    one, two = (load_model(str(f), dtype="float32")[0].state_dict() for f in (base, tuned))
    name = "model.embed_tokens.weight"
    (pair,) = read_stored(tmp_path / "out").pairs.values()
    assert pair.kind == "embedding"
    torch.testing.assert_close(pair.delta().T, two[name] - one[name], rtol=0, atol=1e-5)


def test_other_formats_are_said(tmp_path):
    base = save(tiny("llama"), tmp_path / "base")
    tuned = save(tiny("llama").bfloat16(), tmp_path / "tuned")
    made = run(base, tuned, tmp_path / "out", rank=4)
    assert made.notes[0].startswith("the base is kept in F32 and the tuned model in BF16")


def test_equal_models(tmp_path):
    base = save(tiny("llama"), tmp_path / "base")
    with pytest.raises(AdapterError, match="are equal in all 14 targets"):
        run(base, base, tmp_path / "out", rank=4)


def test_another_architecture(tmp_path):
    base = save(tiny("llama"), tmp_path / "base")
    other = save(tiny("llama", hidden_size=24), tmp_path / "other")
    with pytest.raises(ModelError, match=r"config.json makes it"):
        run(base, other, tmp_path / "out", rank=4)


def test_neither_rank_nor_energy(tmp_path):
    base, tuned = moved(tmp_path)
    with pytest.raises(ConfigError, match="give a rank or an energy"):
        run(base, tuned, tmp_path / "out")


class TestShrinking:
    @pytest.fixture
    def stored(self, tmp_path):
        model = adapt(tiny_llama(), rank=6, rslora=True, targets=("q_proj", "up_proj", "v_proj"))
        with torch.no_grad():
            for path, layer in lora_layers(model).items():
                layer.B.mul_(10.0 if "q_proj" in path else 1.0)
        return read_stored(save_adapter(model, tmp_path / "a"))

    def spectra(self, adapter):
        return {
            path: torch.linalg.svdvals(pair.scale * pair.B.double() @ pair.A.double())[:6]
            for path, pair in adapter.pairs.items()
        }

    @pytest.mark.parametrize("threshold", [False, True])
    def test_the_error_is_what_was_cut(self, stored, threshold):
        made = shrink(stored, ShrinkSpec(rank=3, threshold=threshold), dtype=torch.float64)
        before = self.spectra(stored)
        missed = whole = 0.0
        for path, pair in made.adapter.pairs.items():
            values = before[path]
            old = stored.pairs[path]
            gap = pair.B @ pair.A - old.scale * old.B.double() @ old.A.double()
            torch.testing.assert_close(gap.norm(), values[pair.rank :].norm(), rtol=0, atol=1e-10)
            missed += float(gap.norm()) ** 2
            whole += float(values.norm()) ** 2
        assert made.overall == pytest.approx((missed / whole) ** 0.5, abs=1e-9)
        ranks = {path: pair.rank for path, pair in made.adapter.pairs.items()}
        assert sum(ranks.values()) == 3 * len(ranks)
        if threshold:
            kept = min(float(before[p][r - 1]) for p, r in ranks.items() if r > 1)
            assert kept >= max(float(before[p][r]) for p, r in ranks.items() if r < 6)
            assert min(r for p, r in ranks.items() if "q_proj" in p) > 3
        else:
            assert set(ranks.values()) == {3}

    def test_nothing_cut_changes_nothing(self, stored, tmp_path):
        from lorakit.adapters.pairs import write_stored

        made = shrink(stored, ShrinkSpec(energy=1.0))
        folder = write_stored(tmp_path / "same", made.adapter)
        one, two = tiny_llama(), tiny_llama()
        load_adapter(one, stored.source)
        load_adapter(two, folder)
        assert (logits(one) - logits(two)).abs().max() <= 1e-4

    def test_one_that_was_cut_by_a_threshold_loads(self, stored, tmp_path):
        from lorakit.adapters.pairs import write_stored

        made = shrink(stored, ShrinkSpec(rank=2, threshold=True))
        folder = write_stored(tmp_path / "small", made.adapter)
        model = tiny_llama()
        info = load_adapter(model, folder)
        assert info.ranks == {path: pair.rank for path, pair in made.adapter.pairs.items()}
        assert read_stored(folder).record.provenance["method"]["name"] == "shrink"

    def test_neither_rank_nor_energy(self):
        with pytest.raises(ConfigError, match="give a rank or an energy"):
            ShrinkSpec()
