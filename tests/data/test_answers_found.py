"""Where an answer begins and ends is found whatever the texts are: short, alike, or beside calls."""

import itertools
import time

import numpy as np
import pytest

from lorakit.data import DataSpec, Example, resolve_template
from lorakit.data.encode import encode_examples
from lorakit.data.served import served_turns
from template_families import FAMILIES, SPECIALS

CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"a": "b"}}}
TOOL = {"type": "function", "function": {"name": "look", "description": "d", "parameters": {}}}

OPENS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<A>' + m['content'] + '<E>' }}"
    "{% else %}{{ '<U>' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<A><think>\\n' }}{% endif %}"
)
"""The generation prompt opens a thinking block that no answer has."""

MOVES = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' }}{% if loop.last %}"
    "{{ messages[0]['content'] + '\\n\\n' }}{% endif %}{{ m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + '<E>' }}{% endif %}{% endfor %}"
)
"""The system text stands in a question that comes last, and nowhere once it is answered."""

ALWAYS = (
    "{% for t in tools or [] %}{{ t['function']['name'] }}{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<A><H>' }}{% if m['tool_calls'] %}"
    "{{ '<M>' }}{% for c in m['tool_calls'] %}{{ c['function'] | tojson }}{% endfor %}{{ '<M>' }}"
    "{% else %}{{ '<X>' + m['content'] + '<X>' }}{% endif %}"
    "{% else %}{{ '<U>' + m['content'] }}{% endif %}{{ '<|im_end|>' }}{% endfor %}{{ '<A><H>' }}"
)
"""The generation prompt is always written, and answers begin with the very same."""


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def taught(make_tokenizer, source, messages, tools=()):
    """[(text before, supervised text)], the last one of each sequence."""
    tokenizer = make_tokenizer(template=source)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS})
    row = Example("f:1", messages=tuple(messages), tools=tools)
    template = resolve_template(DataSpec(), tokenizer)
    (found,) = encode_examples([row], tokenizer, template)
    runs = []
    for each in found.sequences:
        edges = [0, *(np.flatnonzero(np.diff(each.weight)) + 1).tolist(), len(each)]
        runs += [
            (tokenizer.decode(each.ids[:a]), tokenizer.decode(each.ids[a:b]))
            for a, b in itertools.pairwise(edges)
            if each.weight[a]
        ]
    return runs


@pytest.mark.parametrize("question", ["hi", "think", "<think>", "n"])
def test_a_question_that_stands_in_the_generation_prompt_is_not_lost(make_tokenizer, question):
    runs = taught(make_tokenizer, OPENS, [say("user", question), say("assistant", "Hello.")])
    assert runs == [(f"<U>{question}<A><think>\n", "Hello.<E>")]


@pytest.mark.parametrize("answer", ["s", "[", "INST", "?", "u[", "\n\nSo", "  x", "\ncode:\n\ty"])
def test_an_answer_that_stands_in_the_question_too_is_found(make_tokenizer, answer):
    question = "Is u[0] s?"
    talk = [say("system", "Be s."), say("user", question), say("assistant", answer)]
    runs = taught(make_tokenizer, MOVES, talk)
    assert runs == [(f"[INST]Be s.\n\n{question}[/INST]", f"{answer}<E>")]


@pytest.mark.parametrize("question", ["X", "<X>"])
def test_a_text_that_stands_in_a_prompt_that_is_always_written_is_not_lost(
    make_tokenizer, question
):
    source = FAMILIES["always a prompt"]
    runs = taught(make_tokenizer, source, [say("user", question), say("assistant", "b")])
    assert runs == [(f"<U>{question}<|im_end|><A><X>", "<H>b<M><|im_end|>")]


def test_a_header_that_is_always_written_is_not_taught_after_a_call(make_tokenizer):
    talk = [say("user", "q"), say("assistant", "", tool_calls=[CALL])]
    ((before, call),) = taught(make_tokenizer, ALWAYS, talk, (TOOL,))
    assert before == "look<U>q<|im_end|><A><H>"
    assert call.startswith("<M>{")
    assert call.endswith("}<M><|im_end|>")
    (answered,) = taught(make_tokenizer, ALWAYS, [say("user", "q"), say("assistant", "b")])
    assert answered == ("<U>q<|im_end|><A><H>", "<X>b<X><|im_end|>")


def test_the_end_of_an_answer_is_kept_where_no_generation_prompt_is_written(make_tokenizer):
    # The system text moves, so the rendering parts from the prompt; both end with the same token.
    source = MOVES.replace("[/INST]", "<E>")
    talk = [say("system", "Be."), say("user", "q"), say("assistant", "b")]
    assert taught(make_tokenizer, source, talk) == [("[INST]Be.\n\nq<E>", "b<E>")]


def test_a_long_conversation_is_checked_in_little_time(make_tokenizer):
    tokenizer = make_tokenizer(template=FAMILIES["chatml"])
    messages = []
    for number in range(24):
        messages += [say("user", f"{number} a b " * 20), say("assistant", f"{number} c d " * 40)]
    row = Example("f:1", messages=tuple(messages))
    template = resolve_template(DataSpec(), tokenizer)
    (found,) = encode_examples([row], tokenizer, template)
    started = time.process_time()
    shown = served_turns(row, found.sequences, tokenizer, template)
    assert [turn.later for turn in shown] == [()] * 24
    assert time.process_time() - started < 8
