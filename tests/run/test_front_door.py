"""`lorakit.generate`, `evaluate`, `merge`, `combine`, `export`: what they take, what they refuse."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import lorakit
from families import saved
from lorakit.errors import AdapterError, ConfigError, DataError

ROWS = [{"prompt": f"say {w}", "completion": w[::-1]} for w in ("lamp", "desk", "river", "stone")]
SHORT = {"max_new_tokens": 4}


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LORAKIT_STORE", str(tmp_path / "store"))
    return saved(tmp_path / "model")


@pytest.fixture
def adapted(base):
    """A loaded model with pairs that change its answers, and its tokenizer."""
    model, tokenizer = lorakit.load_model(str(base), dtype="float32")
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    generator = torch.Generator().manual_seed(0)
    for layer in lorakit.lora_layers(model).values():
        layer.B.data = torch.randn(layer.B.shape, generator=generator) * 0.05
    return model, tokenizer


def test_a_name_a_path_and_a_loaded_model_answer_alike(base):
    model, tokenizer = lorakit.load_model(str(base))
    first = lorakit.generate(model, "Hello", tokenizer=tokenizer, **SHORT)
    assert lorakit.generate(base, "Hello", **SHORT) == first
    assert lorakit.generate(lorakit.ModelSpec(str(base)), ["Hello"], **SHORT) == [first]


def test_pairs_on_a_model_and_their_folder_answer_alike(base, adapted, tmp_path):
    model, tokenizer = adapted
    folder = lorakit.save_adapter(model, tmp_path / "adapter")
    held = lorakit.generate(model, "Hello", tokenizer=tokenizer, **SHORT)
    assert lorakit.generate(base, "Hello", adapter=folder, dtype="float32", **SHORT) == held
    assert lorakit.generate(base, "Hello", dtype="float32", **SHORT) != held
    held = lorakit.evaluate(model, ROWS, tokenizer=tokenizer, metrics="none")
    stored = lorakit.evaluate(base, ROWS, adapter=folder, metrics="none", dtype="float32")
    assert held["eval_loss"] == pytest.approx(stored["eval_loss"], abs=1e-6)
    assert lorakit.evaluate(base, ROWS, metrics="none")["eval_loss"] != held["eval_loss"]


def test_rows_in_memory_measure_as_their_file_does(base, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    given, read = (lorakit.evaluate(base, d, **SHORT) for d in (ROWS, file))
    for name in ("eval_loss", "scores", "rows", "tokens", "data_sha256"):
        assert given[name] == read[name]


def test_a_model_that_transformers_loaded(base):
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    _, tokenizer = lorakit.load_model(str(base))
    result = lorakit.evaluate(model, ROWS, tokenizer=tokenizer, metrics="none")
    assert result["eval_loss"] == pytest.approx(
        lorakit.evaluate(base, ROWS, metrics="none", dtype="float32")["eval_loss"], abs=1e-6
    )
    assert result["model"] == str(base)


def test_a_merge_of_pairs_on_a_model_answers_as_they_do(adapted, tmp_path):
    model, _ = adapted
    before = [(p.clone(), p) for p in model.parameters()]
    certificate = lorakit.merge(model, tmp_path / "merged")
    assert certificate.passed
    assert all(old.equal(now) for old, now in before)
    with torch.no_grad():
        ids = torch.tensor([[5, 9, 11, 40]])
        merged, _ = lorakit.load_model(str(tmp_path / "merged"), dtype="float32")
        torch.testing.assert_close(merged(ids).logits, model(ids).logits, atol=1e-3, rtol=1e-3)


def test_a_weighted_sum(base, adapted, tmp_path):
    model, _ = adapted
    folder = lorakit.save_adapter(model, tmp_path / "adapter")
    lorakit.combine({str(folder): 0.25, model: 0.75}, out=tmp_path / "both")
    whole, _ = lorakit.load_model(str(base), dtype="float32")
    lorakit.load_adapter(whole, tmp_path / "both")
    with torch.no_grad():
        ids = torch.tensor([[5, 9, 11, 40]])
        torch.testing.assert_close(whole(ids).logits, model(ids).logits, atol=1e-3, rtol=1e-3)


def test_an_export_is_a_file_where_it_was_asked_for(adapted, tmp_path):
    exported = lorakit.export(adapted[0], "gguf", tmp_path / "a.gguf")
    assert exported.path == tmp_path / "a.gguf"
    assert exported.path.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda m, t, p: lorakit.generate(m, "Hello"), ConfigError, "give tokenizer="),
        (lambda m, t, p: lorakit.generate(p, " "), ConfigError, "a prompt is empty"),
        (lambda m, t, p: lorakit.generate(p, []), ConfigError, "a prompt is empty"),
        (lambda m, t, p: lorakit.generate(p, "a", max_new_token=1), ConfigError, "max_new_tokens"),
        (
            lambda m, t, p: lorakit.generate(m, "a", tokenizer=t, adapter="x"),
            ConfigError,
            "load_adapter",
        ),
        (
            lambda m, t, p: lorakit.generate(m, "a", tokenizer=t, dtype="float32"),
            ConfigError,
            "dtype is decided already",
        ),
        (lambda m, t, p: lorakit.evaluate(p, []), DataError, "there are no rows"),
        (lambda m, t, p: lorakit.evaluate(p, [*ROWS, 3]), DataError, "row 5 of the rows you gave"),
        (
            lambda m, t, p: lorakit.evaluate(p, [*ROWS, {"prompt": "x"}]),
            DataError,
            "row 5 of the rows you gave: no column 'completion'",
        ),
        (lambda m, t, p: lorakit.evaluate(p, ROWS, epochs=1), ConfigError, "unknown option"),
        (lambda m, t, p: lorakit.merge(m, "merged"), AdapterError, "no adapter attached"),
        (lambda m, t, p: lorakit.combine([], out="x"), ConfigError, "no adapter is given"),
        (lambda m, t, p: lorakit.combine(["a"], out="x", rnk=1), ConfigError, "mean 'rank'"),
        (lambda m, t, p: lorakit.export(m, "peft", "x"), AdapterError, "no adapter attached"),
    ],
)
def test_what_cannot_be_used_is_said(base, tmp_path, monkeypatch, call, error, said):
    monkeypatch.chdir(tmp_path)
    model, tokenizer = lorakit.load_model(str(base))
    with pytest.raises(error, match=said):
        call(model, tokenizer, str(base))


def test_training_names_the_row_that_it_cannot_use(base):
    model, tokenizer = lorakit.load_model(str(base))
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    with pytest.raises(
        DataError, match="row 3 of the held-out rows you gave: the completion is empty"
    ):
        lorakit.train(
            *(model, tokenizer, ROWS), eval_data=[*ROWS[:2], {"prompt": "x", "completion": ""}]
        )
