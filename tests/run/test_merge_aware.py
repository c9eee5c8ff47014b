"""Runs whose layers compute what a quantized merge will: the same losses as the merged folder itself."""

import json

import pytest

import lorakit
from families import saved
from lorakit.config import RunConfig, load_config
from lorakit.errors import ConfigError, TargetError
from lorakit.lora import lora_layers
from lorakit.merging.dequantize import dequantize
from lorakit.merging.model_folder import copy_tokenizer
from lorakit.models import ModelSpec
from lorakit.run.commands.merging import run_merge
from lorakit.run.commands.together import run_together
from lorakit.run.commands.training import run_training

WORDS = ["lamp", "desk", "river", "stone", "cloud", "paper", "window", "garden", "copper"]
ROWS = [{"prompt": f"say {word}", "completion": word[::-1]} for word in WORDS]


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    return saved(tmp_path / "tiny-llama")


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    return file


def loss_of(folder):
    """Held-out loss of a model folder as it is: before the first step of pairs that are zero."""
    model, tokenizer = lorakit.load_model(ModelSpec(model=str(folder), dtype="float32"))
    lorakit.attach(model, lorakit.LoraSpec(rank=1))
    result = lorakit.train(model, tokenizer, ROWS, eval_data=ROWS, max_steps=1)
    return result.eval_loss_before


def merged_loss(base, adapter, tmp_path, form):
    """Held-out loss of the quantized merge, read again."""
    config = RunConfig(model=ModelSpec(model=str(base)))
    options = {"dtype": "base", "certify": "auto", "quantize": form}
    run_merge(config, adapters=[(adapter, 1.0)], out=tmp_path / "merged", **options)
    plain = tmp_path / "plain"
    plain.mkdir()
    dequantize(tmp_path / "merged", plain)
    copy_tokenizer(tmp_path / "merged", plain)
    return loss_of(plain)


@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_its_losses_are_those_of_the_merge(base, tmp_path, form):
    model, tokenizer = lorakit.load_model(ModelSpec(model=str(base), dtype="float32"))
    lorakit.attach(model, lorakit.LoraSpec(rank=4))
    told = []
    result = lorakit.train(
        *(model, tokenizer, ROWS),
        eval_data=ROWS,
        max_steps=20,
        batch_size=4,
        learning_rate=0.01,
        merge_aware=form,
        report=told.append,
    )
    adapter = lorakit.save_adapter(model, tmp_path / "adapter")
    assert result.eval_loss < 0.9 * result.eval_loss_before
    assert merged_loss(base, adapter, tmp_path, form) == pytest.approx(result.eval_loss, rel=1e-4)
    # Quantizing alone moves the loss by more than that.
    assert abs(loss_of(base) / result.eval_loss_before - 1) > 2e-4
    assert all(layer.rounded is None for layer in lora_layers(model).values())
    notes = [event["text"] for event in told if event["kind"] == "note"]
    assert any(f"merge-aware {form}: 14 layers compute with" in note for note in notes)


def settings(base, rows, tmp_path, **options):
    return load_config(
        None,
        {
            "model": str(base),
            "dtype": "float32",
            "data": [str(rows)],
            "eval_data": [str(rows)],
            "out": str(tmp_path / "run"),
            "max_steps": 4,
            "samples": 2,
            "max_new_tokens": 4,
            "learning_rate": 0.01,
            **options,
        },
    )


def test_a_run_says_so_and_records_it(base, rows, tmp_path):
    result = run_training(
        settings(base, rows, tmp_path, merge_aware="nf4", targets="q_proj,lm_head")
    )
    said = "\n".join(result["notes"])
    assert "merge-aware nf4: 2 layers compute with W + s·B·A quantized" in said
    assert "a quantized merge leaves lm_head in a float format" in said
    assert "quantizes model.layers.0.mlp.down_proj, " in said
    assert "merge_aware: nf4" in (tmp_path / "run" / "config.yaml").read_text()


def test_layers_of_a_run_are_rounded(base, rows, tmp_path):
    plain = run_training(settings(base, rows, tmp_path, out=str(tmp_path / "plain")))
    aware = run_training(settings(base, rows, tmp_path, merge_aware="nf4"))
    assert aware["eval_loss_before"] != plain["eval_loss_before"]


@pytest.mark.parametrize(("held", "form"), [("nf4", "nf4"), ("nf4", "int8"), ("int8", "nf4")])
def test_on_a_packed_base(base, rows, tmp_path, held, form):
    config = settings(base, rows, tmp_path, base_dtype=held, merge_aware=form)
    result = run_training(config)
    assert any(f"the base is held in {held}, and this run rounds" in n for n in result["notes"])
    assert result["eval_loss"] < result["eval_loss_before"]
    # The adapter knows how its base was held; its files are in full precision, and quantized once.
    config = RunConfig(model=ModelSpec(model=str(base)))
    options = {"dtype": "base", "certify": "auto", "quantize": form}
    adapter = tmp_path / "run" / "adapter"
    certificate = run_merge(config, adapters=[(adapter, 1.0)], out=tmp_path / "m", **options)
    assert certificate.weights.survival.share == pytest.approx(1.0, abs=0.3)


class TestRefusals:
    def test_dropout(self, base, rows, tmp_path):
        config = settings(base, rows, tmp_path, merge_aware="int8", dropout=0.1)
        with pytest.raises(ConfigError, match="set dropout to 0"):
            run_training(config)
        assert not (tmp_path / "run").exists()

    def test_a_variant_that_is_not_a_sum_of_products(self, base, rows, tmp_path):
        config = settings(base, rows, tmp_path, merge_aware="int8", dora=True)
        with pytest.raises(ConfigError, match=r"merge_aware int8: the variant DoRA cannot .*leave"):
            run_training(config)
        assert not (tmp_path / "run").exists()

    def test_several_at_once(self, base, rows, tmp_path):
        config = settings(base, rows, tmp_path, merge_aware="int8", ranks="2,4")
        with pytest.raises(ConfigError, match="leave ranks and tasks out"):
            run_together(config)

    def test_no_layer_that_is_quantized(self, base, rows, tmp_path):
        config = settings(base, rows, tmp_path, merge_aware="int8", targets="lm_head")
        with pytest.raises(TargetError, match="no adapted layer is one that a quantized merge"):
            run_training(config)
        assert not (tmp_path / "run").exists()

    def test_in_python(self, base):
        model, tokenizer = lorakit.load_model(ModelSpec(model=str(base), dtype="float32"))
        lorakit.attach(model, lorakit.LoraSpec(rank=4, dropout=0.1))
        with pytest.raises(ConfigError, match="set dropout to 0"):
            lorakit.train(model, tokenizer, ROWS, merge_aware="nf4", max_steps=1)


def test_a_form_that_is_none():
    with pytest.raises(ConfigError, match="merge_aware"):
        load_config(None, {"merge_aware": "fp8"})
