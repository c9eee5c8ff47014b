"""The template in an adapter's folder is the one that transformers would read there."""

import json

import pytest
from transformers import AutoTokenizer

from families import tokenizer
from lorakit.adapters.saved_template import saved_chat_template
from lorakit.errors import AdapterError

ONE, TOOLS = "{% for m in messages %}[{{ m.content }}]{% endfor %}", "{{ tools }}"


@pytest.mark.parametrize("jinja_files", [True, False], ids=["files", "tokenizer_config"])
@pytest.mark.parametrize(
    "template",
    [None, ONE, {"default": ONE, "tool_use": TOOLS}, {"tool_use": TOOLS}],
    ids=["none", "one", "two", "tools-alone"],
)
def test_what_a_trainer_saved_is_read_as_transformers_reads_it(template, jinja_files, tmp_path):
    words = tokenizer()
    words.chat_template = template
    words.save_pretrained(tmp_path, save_jinja_files=jinja_files)
    expected = AutoTokenizer.from_pretrained(tmp_path).chat_template
    assert expected == template
    assert saved_chat_template(tmp_path) == expected


def test_files_of_templates_win_over_the_tokenizer_configuration(tmp_path):
    words = tokenizer()
    words.chat_template = {"default": "old", "rag": "old too"}
    words.save_pretrained(tmp_path, save_jinja_files=False)
    (tmp_path / "chat_template.jinja").write_text(ONE)
    assert saved_chat_template(tmp_path) == ONE
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == ONE


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json"])
def test_a_processors_template(name, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (tmp_path / name).write_text(json.dumps({"chat_template": ONE}))
    assert saved_chat_template(str(tmp_path)) == ONE


def test_an_empty_template_is_none(tmp_path):
    assert saved_chat_template(tmp_path) is None
    (tmp_path / "chat_template.jinja").write_text(" \n")
    assert saved_chat_template(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chat_template.jinja", b"\xff\xfe{{", r"chat_template\.jinja is no UTF-8 text"),
        ("tokenizer_config.json", b"{", r"tokenizer_config\.json is broken JSON"),
        ("tokenizer_config.json", b'{"chat_template": 3}', r"chat_template is a int, not a Jinja"),
        (
            "tokenizer_config.json",
            b'{"chat_template": [{"name": "default"}]}',
            r"chat_template holds .*default.*, not a Jinja text or a list",
        ),
    ],
)
def test_a_broken_one_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AdapterError, match=message):
        saved_chat_template(tmp_path)
