"""Chat templates in Go's form: what they write is what the template writes, and else there is none."""

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from jinja2 import TemplateError

from families import tokenizer
from go_templates import rendered
from lorakit.adapters.export.go_template import (
    GoTemplate,
    Message,
    NoGoFormError,
    derive,
    printable,
)
from lorakit.adapters.export.ollama import modelfile

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Of my own, each after a kind that models ship.
TEMPLATES = {
    "chatml": CHATML,
    "a default where there is no system": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
        + CHATML
    ),
    "begins with bos": "{{ bos_token }}" + CHATML,
    "system within the first question": (
        "{{ bos_token }}{% set ns = namespace(s='') %}{% for m in messages %}"
        "{% if m.role == 'system' %}{% set ns.s = m.content ~ '\n\n' %}"
        "{% elif m.role == 'user' %}[USER]{{ ns.s }}{{ m.content }}[/USER]{% set ns.s = '' %}"
        "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "system within the last question": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] "
        "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
        "{{ m.content }}[/INST]{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
        "{% endif %}{% endfor %}"
    ),
    "bos before every question": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
    "the prompt opens more than an answer": (
        CHATML.replace("assistant\n{% endif", "assistant\n<think>\n\n</think>\n\n{% endif")
    ),
    "braces, quotes and spaces that Go or Ollama would change": (
        "{% for m in messages %}{{ '{{ x }}\u00a0\"\"\"' }}{{ m.role }}{{ '{' }}{{ m.content }}"
        "{{ '}\u200d\U0001f600\\\\n' }}{% endfor %}{{ '{' }}"
    ),
}
NO_FORM = {
    "contents in capitals": "{% for m in messages %}[{{ m.content | upper }}]{% endfor %}",
    "the last question twice": CHATML + "{{ messages[-1].content }}",
    "turns are numbered": (
        "{% for m in messages %}{{ loop.index }}. {{ m.role }}: {{ m.content }}\n{% endfor %}"
    ),
    "earlier answers are shortened": (
        "{% for m in messages %}{{ m.role }}: {{ m.content if loop.last or m.role == 'user' else "
        "m.content[:12] }}\n{% endfor %}"
    ),
    "long contents are cut": (
        "{% for m in messages %}<{{ m.role }}>{{ m.content[:20] }}\n{% endfor %}"
    ),
}


def renderer(source: str):
    words = tokenizer()

    def render(messages, prompt):
        try:
            return words.apply_chat_template(
                [dict(m) for m in messages],
                chat_template=source,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except TemplateError:
            return None

    return render


def conversations() -> list[list[Message]]:
    texts = ["Why?", "Two\nlines\n\nand {{ .System }}", "quote \" and 'x' \\n", "好 – ünïcode"]
    made = []
    for system, questions in itertools.product((None, 'You {are} "brief".'), (1, 2, 3)):
        turns = [{"role": "system", "content": system}] if system else []
        for i in range(questions):
            turns.append({"role": "user", "content": texts[i]})
            turns.append({"role": "assistant", "content": texts[i + 1]})
        made.append(turns[:-1])
    return made


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_the_go_template_writes_what_the_template_writes(source):
    render = renderer(source)
    go = derive(render, "<s>").go(bos=True)
    for messages in conversations():
        wanted = render(messages, True)
        has_system = messages[0]["role"] == "system"
        if has_system and messages[0]["content"] not in wanted:
            continue  # it takes none
        assert rendered(go, messages) == wanted


@pytest.mark.parametrize("source", NO_FORM.values(), ids=NO_FORM)
def test_what_has_no_go_form_gets_none(source):
    with pytest.raises(NoGoFormError):
        derive(renderer(source), "<s>")


@pytest.mark.parametrize(
    "name", ["begins with bos", "bos before every question", "system within the first question"]
)
def test_the_token_that_begins_a_text_is_left_to_the_runtime(name):
    """llama.cpp puts it before every prompt where the file says so: once, and no second one."""
    render = renderer(TEMPLATES[name])
    go = derive(render, "<s>").go(bos=False)
    for messages in conversations():
        if messages[0]["role"] == "user":
            assert "<s>" + rendered(go, messages) == render(messages, True)


def test_a_modelfile_keeps_what_its_parser_would_drop():
    """Ollama's parser keeps printable characters alone, and three quotes end a text."""
    found = derive(renderer(TEMPLATES["braces, quotes and spaces that Go or Ollama would change"]))
    text = modelfile("m.gguf", found, bos=True, stops=["</s>", 'a"b'], system="no\u00a0break")
    _, template, rest = text.split('"""', 2)
    assert all(map(printable, template))
    assert 'PARAMETER stop "</s>"' in rest
    assert 'PARAMETER stop """a"b"""' in rest
    assert "SYSTEM" not in rest  # it would lose its space; the template has it
    assert 'SYSTEM """two\nlines"""' in modelfile(
        "m.gguf", None, bos=True, stops=[], system="two\nlines"
    )


_GO = """
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

type message struct{ Role, Content string }
type job struct {
	Template, System string
	Messages         []*message
}

func main() {
	var jobs []job
	texts := []string{}
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		panic(err)
	}
	for _, j := range jobs {
		var b bytes.Buffer
		t := template.Must(template.New("").Option("missingkey=zero").Parse(j.Template))
		if err := t.Execute(&b, map[string]any{"System": j.System, "Messages": j.Messages}); err != nil {
			panic(err)
		}
		texts = append(texts, b.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
"""


@pytest.mark.readers
@pytest.mark.skipif(shutil.which("go") is None, reason="Go itself is not here")
def test_go_itself_writes_the_same(tmp_path: Path):
    (tmp_path / "run.go").write_text(_GO)
    jobs, wanted = [], []
    for source in TEMPLATES.values():
        found: GoTemplate = derive(renderer(source), "<s>")
        for messages, bos in itertools.product(conversations(), (True, False)):
            system = messages[0]["content"] if messages[0]["role"] == "system" else ""
            turns = [{"Role": m["role"], "Content": m["content"]} for m in messages]
            jobs.append({"Template": found.go(bos=bos), "System": system, "Messages": turns})
            wanted.append(rendered(found.go(bos=bos), messages))
    done = subprocess.run(
        ["go", "run", tmp_path / "run.go"],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == wanted
