"""The template that an adapter was trained with is used wherever the adapter is."""

import json

import pytest

import lorakit
from families import saved, tokenizer
from lorakit.adapters import read_adapter
from lorakit.adapters.store import Store
from lorakit.data import DataSpec
from lorakit.errors import ConfigError
from lorakit.run.notebook.given import session_of
from lorakit.run.session import open_adapted, recorded_template

OWN = (
    "{% for m in messages %}{{ m['role'] + '|' + m['content'] + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant|' }}{{ mood or '' }}{% endif %}"
)


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LORAKIT_STORE", str(tmp_path / "store"))
    return saved(tmp_path / "model")


@pytest.fixture
def foreign(base, tmp_path):
    """An adapter as another trainer saves it: no record of ours, a chat template beside it."""
    model, _ = lorakit.load_model(str(base))
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    folder = lorakit.save_adapter(model, tmp_path / "foreign")
    (folder / "lorakit.json").unlink()
    (folder / "chat_template.jinja").write_text(OWN)
    return folder


def test_a_template_saved_beside_a_foreign_adapter_is_used(base, foreign):
    session = open_adapted(lorakit.ModelSpec(str(base)), foreign)
    assert session.template.source == OWN
    model, words = lorakit.load_model(str(base))
    lorakit.load_adapter(model, foreign)
    assert session_of(model, words, DataSpec()).template.source == OWN
    lorakit.detach(model)
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    assert session_of(model, words, DataSpec()).template.source == words.chat_template


def test_the_store_keeps_it(base, foreign):
    Store().add(foreign, "foreign")
    info = read_adapter(Store().resolve("foreign").version.folder)
    assert recorded_template(info, None).source == OWN


def test_variables_and_system_go_over_what_was_recorded(base, foreign):
    info = read_adapter(foreign)
    changed = recorded_template(info, DataSpec(template_options={"mood": "kind"}, system="Be."))
    assert (changed.source, changed.options, changed.system) == (OWN, {"mood": "kind"}, "Be.")
    with pytest.raises(
        ConfigError, match="'mod' is no variable of the chat template; did you mean"
    ):
        recorded_template(info, DataSpec(template_options={"mod": "kind"}))
    assert recorded_template(info, DataSpec(template="chat")) is None


def test_python_records_what_it_trained_with(base, tmp_path):
    model, words = lorakit.load_model(str(base))
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    file = tmp_path / "own.jinja"
    file.write_text(OWN)
    rows = [{"prompt": f"say {w}", "completion": w} for w in ("lamp", "desk", "river", "stone")]
    options = {"template": str(file), "template_option": {"mood": "kind"}, "max_steps": 1}
    lorakit.train(model, words, rows, eval_share=0, **options)
    assert session_of(model, words, DataSpec()).template.options == {"mood": "kind"}
    folder = lorakit.save_adapter(model, tmp_path / "adapter")
    recorded = json.loads((folder / "lorakit.json").read_text())["provenance"]["template"]
    assert (recorded["source"], recorded["options"]) == (OWN, {"mood": "kind"})
    again, _ = lorakit.load_model(str(base))
    lorakit.load_adapter(again, folder)
    once_more = lorakit.save_adapter(again, tmp_path / "copy")
    assert (
        json.loads((once_more / "lorakit.json").read_text())["provenance"]["template"] == recorded
    )


def test_the_test_model_has_another_template():
    assert tokenizer().chat_template != OWN
