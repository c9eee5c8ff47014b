"""Which template is meant, and that what was recorded comes back."""

import json

import pytest

from lorakit.data import DataSpec, Row, Template, recognise, resolve_template
from lorakit.errors import ConfigError

TEXT = recognise(Row("f", 1, {"text": "x"}), DataSpec())
TALK = recognise(Row("f", 1, {"messages": []}), DataSpec())


def test_auto_takes_the_models_own_or_raw(chatml, plain):
    assert resolve_template(DataSpec(), chatml).source == chatml.chat_template
    assert resolve_template(DataSpec(), plain) == Template("raw")
    assert resolve_template(DataSpec(template="raw"), chatml) == Template("raw")
    assert resolve_template(DataSpec(), chatml, shape=TEXT) == Template("raw")


def test_a_file_and_the_default_of_several(tmp_path, plain, make_tokenizer):
    path = tmp_path / "t.jinja"
    path.write_text("{{ messages }}")
    assert resolve_template(DataSpec(template=str(path)), plain).source == "{{ messages }}"
    several = make_tokenizer(template={"default": "{{ 1 }}", "tool_use": "{{ 2 }}"})
    assert resolve_template(DataSpec(), several).source == "{{ 1 }}"
    with pytest.raises(ConfigError, match=r"several chat templates \(rag, tool_use\)"):
        resolve_template(DataSpec(), make_tokenizer(template={"rag": "a", "tool_use": "b"}))


def test_what_is_recorded_comes_back():
    template = Template("chat", "{{ messages }}", "Be brief.")
    again = Template.from_dict(json.loads(json.dumps(template.to_dict())))
    assert again == template
    # sha256 of the source, from coreutils
    assert Template("chat", "abc").sha256.startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "chat", "source": "x", "sha256": "0" * 64}, "the chat template was changed"),
        ({"kind": "chat"}, "needs its source"),
        ({"kind": "cat"}, "of the kind 'chat' or 'raw'"),
        ({"kind": "raw", "system": "s"}, "system has no place"),
        ({"kind": "raw", "sorce": "x"}, "unknown key 'sorce'; did you mean 'source'"),
        ({}, "the key 'kind' is missing"),
    ],
)
def test_a_record_that_does_not_hold(values, says):
    with pytest.raises(ConfigError, match=says):
        Template.from_dict(values)


def test_what_cannot_be_resolved(tmp_path, plain, chatml, monkeypatch):
    def refused(tokenizer, shape=None, **values):
        with pytest.raises(ConfigError) as caught:
            resolve_template(DataSpec(**values), tokenizer, shape=shape)
        return str(caught.value)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "chatml.jinja").write_text(" ")
    assert "the model has no chat template: give template a file" in refused(plain, template="chat")
    assert "the rows are conversations, but the model has no" in refused(plain, TALK)
    assert "template 'raw' has no roles" in refused(chatml, TALK, template="raw")
    assert "system is given, but the model has no" in refused(plain, system="s")
    assert "did you mean 'chat'?" in refused(chatml, template="chta")
    assert "did you mean 'chatml.jinja'?" in refused(chatml, template="./chatmll.jinja")
    assert "the file is empty" in refused(chatml, template="chatml.jinja")
    assert "rows of text are trained on as they stand" in refused(chatml, TEXT, template="chat")
    assert "system cannot be used" in refused(chatml, TEXT, system="s")
