"""Ids and weights, against ones written by hand: with the tests' tokenizer an id is a byte."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.data import DataSpec, Example, encode_all, encode_prompt, resolve_template
from lorakit.data.encode import encode
from lorakit.errors import ConfigError, DataError

CHAT, RAW = DataSpec(template="auto"), DataSpec(template="raw")

TAGGED = (
    "{%- for m in messages -%}\n"
    "  {%- if m['role'] == 'assistant' -%}\n"
    "    {{- '<|im_start|>assistant\\n' -}}\n"
    "    {%- generation -%}{{ m['content'] }}TAIL{%- endgeneration -%}{{- '\\n' -}}\n"
    "  {%- else -%}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' -}}\n"
    "  {%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
TAG_AROUND_END = TAGGED.replace("TAIL", "<|im_end|>")
TAG_BEFORE_END = TAGGED.replace("TAIL{%- endgeneration -%}", "{%- endgeneration -%}<|im_end|>")
# Answers before the last are written without what the last one has: as reasoning models do.
UNSTABLE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
UNENDED = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def talk(*messages, **more):
    return Example("f:1", messages=tuple(messages), **more)


def qa(prompt, completion=None):
    return Example("f:1", prompt=prompt, completion=completion)


def shown(encoded, tokenizer):
    """[(text, supervised)] in runs."""
    edges = [0, *(np.flatnonzero(np.diff(encoded.weight)) + 1).tolist(), len(encoded)]
    return [
        (tokenizer.decode(encoded.ids[a:b]), bool(encoded.weight[a])) for a, b in pairwise(edges)
    ]


def by(tokenizer, example, spec=CHAT):
    return encode(example, tokenizer, resolve_template(spec, tokenizer))


def test_chat_by_hand(chatml):
    found = by(chatml, qa("Hi", "Yo"))
    start, end = 0, 1
    ids = dict(zip(*[(chatml.convert_ids_to_tokens(range(259))), range(259)], strict=True))

    def spell(text):
        return [ids["Ċ" if c == "\n" else c] for c in text]

    asked = [start, *spell("user\nHi"), end, *spell("\n"), start, *spell("assistant\n")]
    assert found.ids.tolist() == [*asked, *spell("Yo"), end]
    assert found.weight.tolist() == [0] * len(asked) + [1, 1, 1]
    assert found.ids.dtype == np.int32
    assert found.weight.dtype == np.uint8
    assert encode_prompt(qa("Hi", "Yo"), chatml, resolve_template(CHAT, chatml)).tolist() == asked


def test_every_assistant_turn_bears_loss_with_its_end_but_not_the_newline(chatml):
    turns = [say("system", "s"), say("user", "a"), say("assistant", "b")]
    turns += [say("user", "c"), say("assistant", "d"), say("user", "e")]
    assert shown(by(chatml, talk(*turns)), chatml) == [
        (
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("b<|im_end|>", True),
        ("\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n", False),
        ("d<|im_end|>", True),
    ]


def test_a_weight_of_zero_keeps_an_answer_out(chatml):
    turns = [
        say("user", "a"),
        say("assistant", "b", weight=0),
        say("user", "c"),
        say("assistant", "d"),
    ]
    supervised = [text for text, bears in shown(by(chatml, talk(*turns)), chatml) if bears]
    assert supervised == ["d<|im_end|>"]
    with pytest.raises(DataError, match="f:1: every assistant message of the row has weight 0"):
        by(chatml, talk(say("user", "a"), say("assistant", "b", weight=0)))


def test_raw_and_text(plain):
    assert shown(by(plain, qa("Hi ", "Yo")), plain) == [("Hi ", False), ("Yo<|endoftext|>", True)]
    text = by(plain, Example("f:1", text="Yo!"))
    assert plain.decode(text.ids) == "Yo!<|endoftext|>"
    assert text.weight.tolist() == [0, 1, 1, 1]  # nothing predicts the first token
    assert by(plain, qa("", "Yo")).weight.tolist() == [0, 1, 1]


@pytest.mark.parametrize("puts", [True, False])
def test_one_bos_where_the_tokenizer_puts_one(make_tokenizer, puts):
    tokenizer = make_tokenizer(template=None, bos="<|im_start|>", puts_bos=puts)
    bos = ["<|im_start|>"] if puts else []
    assert shown(by(tokenizer, qa("H", "Y")), tokenizer)[0][0] == "".join([*bos, "H"])
    given_one = by(tokenizer, qa("<|im_start|>H", "Y"))
    assert given_one.ids.tolist().count(0) == 1
    assert by(tokenizer, Example("f:1", text="Y")).weight.tolist() == (
        [0, 1, 1] if puts else [0, 1]
    )
    prompt = encode_prompt(qa("H"), tokenizer, resolve_template(RAW, tokenizer))
    assert tokenizer.decode(prompt) == "".join([*bos, "H"])


def test_a_chat_template_writes_its_own_bos(make_tokenizer):
    tokenizer = make_tokenizer(bos="<|endoftext|>", puts_bos=True)
    assert 2 not in by(tokenizer, qa("H", "Y")).ids
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert by(tokenizer, qa("H", "Y")).ids.tolist().count(2) == 1


def test_a_token_never_reaches_from_the_prompt_into_the_answer(make_tokenizer):
    tokenizer = make_tokenizer(merges=[("Ċ", "Ċ"), ("H", "Y")])
    both = tokenizer("\n\n")["input_ids"]
    assert len(both) == 1  # it would, if prompt and answer were one text
    found = by(tokenizer, qa("H", "\nY"))
    assert both[0] not in found.ids
    asked = encode_prompt(qa("H"), tokenizer, resolve_template(CHAT, tokenizer))
    assert found.ids[: len(asked)].tolist() == asked.tolist()
    assert tokenizer.decode(found.ids[found.weight == 1]) == "\nY<|im_end|>"
    raw = by(tokenizer, qa("H", "Y"), RAW)
    assert raw.ids.tolist() == [*tokenizer("H")["input_ids"], *tokenizer("Y")["input_ids"], 1]


letters = st.text("ab\n é", min_size=1, max_size=8).filter(str.strip)


@given(
    turns=st.lists(letters, min_size=2, max_size=5),
    system=st.none() | letters,
    raw=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_what_is_asked_is_how_the_training_row_begins(make_tokenizer, turns, system, raw):
    tokenizer = make_tokenizer(merges=[("Ċ", "Ċ"), ("a", "b"), ("b", "Ċ"), ("Ġ", "a"), ("a", "a")])
    if raw:
        example, spec = qa(turns[0], turns[1]), RAW
    else:
        roles = ("user", "assistant")
        turns = turns[: len(turns) // 2 * 2]
        example = talk(*(say(roles[i % 2], t) for i, t in enumerate(turns)))
        spec = DataSpec(system=system)
    template = resolve_template(spec, tokenizer)
    found = encode(example, tokenizer, template)
    asked = encode_prompt(example, tokenizer, template)
    assert found.ids[: len(asked)].tolist() == asked.tolist()
    assert found.weight[len(asked) :].all()
    assert tokenizer.decode(found.ids[len(asked) :]) == turns[1 if raw else -1] + "<|im_end|>"
    supervised = [text for text, bears in shown(found, tokenizer) if bears]
    if not raw:
        assert supervised == [f"{t}<|im_end|>" for t in turns[1::2]]
        # another's rendering of the whole conversation, without the newline at its very end
        messages = [say("system", system)] * bool(system) + list(example.messages)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        assert tokenizer.decode(found.ids) == whole[:-1]


@pytest.mark.parametrize("source", [TAG_AROUND_END, TAG_BEFORE_END])
def test_a_template_that_marks_its_answers(make_tokenizer, source):
    tokenizer = make_tokenizer(template=source)
    turns = (say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "dé"))
    found = by(tokenizer, talk(*turns))
    assert [t for t, bears in shown(found, tokenizer) if bears] == ["b<|im_end|>", "dé<|im_end|>"]
    # transformers' own reading of the tags, which it gives for tokens
    theirs = tokenizer.apply_chat_template(
        list(turns), return_dict=True, return_assistant_tokens_mask=True
    )
    n = len(found)
    assert found.ids.tolist() == theirs["input_ids"][:n]
    mask = np.array(theirs["assistant_masks"][:n])
    if source == TAG_BEFORE_END:
        mask[[i for i in range(1, n) if found.ids[i] == 1 and mask[i - 1]]] = 1
    assert found.weight.tolist() == mask.tolist()
    asked = encode_prompt(talk(*turns), tokenizer, resolve_template(CHAT, tokenizer))
    assert found.ids[: len(asked)].tolist() == asked.tolist()


def test_turns_that_the_template_rewrites_become_sequences_of_their_own(make_tokenizer):
    tokenizer = make_tokenizer(template=UNSTABLE)
    turns = (say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d"))
    template = resolve_template(CHAT, tokenizer)
    found = list(encode_all([talk(*turns)], tokenizer, template))
    ask = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert [shown(each, tokenizer) for each in found] == [
        [(ask.format("a"), False), ("<think></think>b<|im_end|>", True)],
        [
            (ask.format("a") + "b<|im_end|>\n" + ask.format("c"), False),
            ("<think></think>d<|im_end|>", True),
        ],
    ]
    for each, upto in zip(found, (1, 3), strict=True):
        prompt = encode_prompt(talk(*turns[:upto]), tokenizer, template)
        assert each.ids[: len(prompt)].tolist() == prompt.tolist()


def test_a_template_that_ends_no_turn_gets_the_eos(make_tokenizer):
    tokenizer = make_tokenizer(template=UNENDED, eos="<|endoftext|>")
    found = by(tokenizer, qa("a", "b"))
    assert shown(found, tokenizer) == [("user: a\nassistant: ", False), ("b\n<|endoftext|>", True)]
    # Two such answers: each of them is taught where to stop, so each is the last of its sequence.
    turns = (say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d"))
    first, second = encode_all([talk(*turns)], tokenizer, resolve_template(CHAT, tokenizer))
    assert shown(first, tokenizer) == shown(found, tokenizer)
    assert shown(second, tokenizer) == [
        ("user: a\nassistant: b\nuser: c\nassistant: ", False),
        ("d\n<|endoftext|>", True),
    ]


def test_no_end_token_at_all_is_refused(make_tokenizer):
    tokenizer = make_tokenizer(template=None, eos=None)
    with pytest.raises(ConfigError, match="never learn to stop"):
        by(tokenizer, qa("a", "b"))


@pytest.mark.parametrize(
    ("source", "example", "says"),
    [
        (None, talk(say("assistant", "a")), "begins with an assistant message"),
        (
            None,
            talk(say("user", "a"), say("assistant", "b"), tools=({"x": 1},)),
            "the chat template leaves out the tool definitions of the row ('{\"x\": 1}')",
        ),
        (
            None,
            talk(
                say("user", "a"),
                say("assistant", "", tool_calls=[{"function": {"name": "look", "arguments": {}}}]),
            ),
            "the chat template leaves out the tool calls of message 2 ('look')",
        ),
        (
            "{{ raise_exception('System role not supported') }}",
            talk(say("user", "a"), say("assistant", "b")),
            "the chat template refuses the messages (user): System role not supported",
        ),
        (TAG_AROUND_END, talk(say("user", "\ue0f0"), say("assistant", "b")), "U+E0F0"),
    ],
)
def test_a_row_that_the_template_cannot_write(make_tokenizer, chatml, source, example, says):
    tokenizer = make_tokenizer(template=source) if source else chatml
    with pytest.raises(DataError) as caught:
        by(tokenizer, example)
    assert str(caught.value).startswith("f:1: ")
    assert says in str(caught.value)


def test_a_template_with_a_broken_line(make_tokenizer):
    with pytest.raises(ConfigError, match="the chat template is broken at its line 2"):
        by(make_tokenizer(template="{{ 1 }}\n{% for %}"), qa("a", "b"))


def test_what_cannot_be_asked_or_put_raw(chatml, plain):
    with pytest.raises(DataError, match="plain text has no prompt"):
        encode_prompt(Example("f:1", text="x"), plain, resolve_template(RAW, plain))
    with pytest.raises(DataError, match="needs a chat template, and this one is 'raw'"):
        by(plain, talk(say("user", "a"), say("assistant", "b")))


def test_many_rows_in_chunks_are_as_each_alone(chatml):
    template = resolve_template(CHAT, chatml)
    examples = [qa("q" * i, "a" * (1 + i % 3)) for i in range(1, 12)]
    together = list(encode_all(examples, chatml, template, chunk=4))
    for example, found in zip(examples, together, strict=True):
        alone = encode(example, chatml, template)
        assert found.ids.tolist() == alone.ids.tolist()
        assert found.weight.tolist() == alone.weight.tolist()
