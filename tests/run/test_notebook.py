"""Python in a few names, as a notebook writes it."""

import pytest

import lorakit
from families import saved
from lorakit.errors import BaseMismatchError, ConfigError, DataError

ROWS = [{"prompt": f"say {w}", "completion": w[::-1]} for w in ("lamp", "desk", "river", "stone")]


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    return saved(tmp_path / "model")


def test_load_attach_train_save_and_load_again(base, tmp_path):
    model, tokenizer = lorakit.load_model(str(base))
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    events = []
    result = lorakit.train(
        model, tokenizer, ROWS, eval_data=ROWS, epochs=20, learning_rate=0.02, report=events.append
    )
    assert result.eval_loss < result.eval_loss_before
    assert [e["step"] for e in events if e["kind"] == "train"] == list(range(1, 21))
    folder = lorakit.save_adapter(model, tmp_path / "adapter")

    again, _ = lorakit.load_model(str(base))
    info = lorakit.load_adapter(again, folder)
    assert info.base is not None
    for path, layer in lorakit.lora_layers(again).items():
        assert layer.B.equal(lorakit.lora_layers(model)[path].B)


def test_an_adapter_saved_from_python_knows_its_base(base, tmp_path):
    model, _ = lorakit.load_model(str(base))
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    folder = lorakit.save_adapter(model, tmp_path / "adapter")
    other, _ = lorakit.load_model(str(saved(tmp_path / "other", "qwen2")))
    with pytest.raises(BaseMismatchError):
        lorakit.load_adapter(other, folder)


def test_an_unknown_option_names_the_nearest(base):
    model, tokenizer = lorakit.load_model(str(base))
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    with pytest.raises(ConfigError, match="unknown option 'epoch'; did you mean 'epochs'"):
        lorakit.train(model, tokenizer, ROWS, epoch=1)


def test_rows_that_cannot_be_used(base):
    model, tokenizer = lorakit.load_model(str(base))
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    with pytest.raises(DataError, match="none of"):
        lorakit.train(model, tokenizer, [{"a": 1, "b": 2}])
