"""What is trained is what will be asked: turns, ends and what a template leaves out, by family.

The oracle is transformers' own rendering of the same messages.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.data import DataSpec, Example, encode_prompt, load_data, resolve_template
from lorakit.data.encode import encode_examples
from lorakit.data.ends import end_of_turn
from lorakit.data.served import served_turns
from lorakit.data.template import Template
from lorakit.errors import ConfigError, DataError
from template_families import CALLS, FAMILIES, SPECIALS

CALL = {
    "id": "abcdef123",
    "type": "function",
    "function": {"name": "look", "arguments": {"a": "b"}},
}
TOOL = {"type": "function", "function": {"name": "look", "description": "d", "parameters": {}}}


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def talk(*messages, **more):
    return Example("f:1", messages=tuple(messages), **more)


@pytest.fixture(scope="session")
def tokenizer_of(make_tokenizer):
    def make(source, **options):
        tokenizer = make_tokenizer(template=source, **options)
        tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS})
        return tokenizer

    return make


def encoded(tokenizer, example, drop=(), template=None):
    template = template or resolve_template(DataSpec(), tokenizer)
    (found,) = encode_examples([example], tokenizer, template, drop=drop)
    return found


def supervised(tokenizer, found):
    """[(text before, supervised text)] of every run, over all sequences."""
    runs = []
    for row in found.sequences:
        edges = [0, *(np.flatnonzero(np.diff(row.weight)) + 1).tolist(), len(row)]
        runs += [
            (tokenizer.decode(row.ids[:a]), tokenizer.decode(row.ids[a:b]))
            for a, b in itertools.pairwise(edges)
            if row.weight[a]
        ]
    return runs


ANSWERS = {
    "chatml": ("b<|im_end|>", "d<|im_end|>"),
    "last answer thinks": (
        "<think>\n\n</think>\n\nb<|im_end|>",
        "<think>\n\n</think>\n\nd<|im_end|>",
    ),
    "prompt opens thinking": ("b<E>", "d<E>"),
    "answer closes thinking": ("</think>b<U>", "</think>d<|im_end|>"),
    "another last end": ("<H>final<M>b<E>", "<H>final<M>d<E>"),
    "ended by the next turn": ("b<U>", "d<|im_end|>"),
    "ended late": ("b<E>", "d<E>"),
    "instructions": ("b<E>", "d<E>"),
    "always a prompt": ("<H>b<M><|im_end|>", "<H>d<M><|im_end|>"),
    "parts": ("b<|im_end|>", "d<|im_end|>"),
    "words": (" b\n\n<|im_end|>", " d\n\n<|im_end|>"),
    "marked": ("b<|im_end|>", "d<|im_end|>"),
}
"""What each family's model has to generate, by hand, with the tokenizer's eos <|im_end|>."""


@pytest.mark.parametrize("family", FAMILIES)
def test_each_answer_follows_the_prompt_as_transformers_writes_it(tokenizer_of, family):
    tokenizer = tokenizer_of(FAMILIES[family])
    turns = [say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d")]
    found = encoded(tokenizer, talk(*turns))
    content = [[{"type": "text", "text": m["content"]}] for m in turns]
    form = [{**m, "content": c} for m, c in zip(turns, content, strict=True)]
    theirs = form if family == "parts" else turns
    prompts = [
        tokenizer.apply_chat_template(theirs[:n], tokenize=False, add_generation_prompt=True)
        for n in (1, 3)
    ]
    assert supervised(tokenizer, found) == list(zip(prompts, ANSWERS[family], strict=True))
    ends = {tokenizer.convert_ids_to_tokens(i) for i in end_of_turn(tokenizer, _own(tokenizer))}
    taught = {tokenizer.convert_ids_to_tokens(int(row.ids[-1])) for row in found.sequences}
    assert taught <= ends | {"<|im_end|>"}
    for _, answer in supervised(tokenizer, found):
        assert answer.endswith(tuple(ends | {"<|im_end|>"}))


def _own(tokenizer):
    return resolve_template(DataSpec(), tokenizer)


words = st.text("ab\n é.", min_size=1, max_size=8).filter(str.strip)


@pytest.mark.parametrize("family", FAMILIES)
@given(
    texts=st.lists(words, min_size=2, max_size=6),
    system=st.none() | words,
    thinks=st.lists(st.booleans(), min_size=3, max_size=3),
)
@settings(max_examples=25, deadline=None)
def test_a_row_trained_is_a_row_served(tokenizer_of, family, texts, system, thinks):
    merges = [("Ċ", "Ċ"), ("a", "b"), ("b", "Ċ"), ("Ġ", "a"), ("a", "a"), (":", "Ġ"), (".", "Ċ")]
    tokenizer = tokenizer_of(FAMILIES[family], merges=merges)
    template = resolve_template(DataSpec(system=system), tokenizer)
    messages = []
    for i, text in enumerate(texts[: len(texts) // 2 * 2]):
        thought = f"<think>\n{text}\n</think>\n\n" if thinks[i // 2] and i % 2 else ""
        messages.append(say(("user", "assistant")[i % 2], thought + text))
    found = encoded(tokenizer, talk(*messages), drop=("thinking",), template=template)
    taught = []
    for row in found.sequences:
        starts = np.flatnonzero(np.diff(row.weight.astype(int)) == 1) + 1
        taught += [row.ids[:start].tolist() for start in starts]
    served = [
        # As the server does: an empty answer after the messages that a client sends.
        encode_prompt(talk(*messages[:n], say("assistant", "")), tokenizer, template).tolist()
        for n in range(1, len(messages), 2)
    ]
    assert sorted(taught) == sorted(served)


SEPARATE = (
    *("last answer thinks", "prompt opens thinking", "answer closes thinking"),
    *("another last end", "always a prompt", "words"),
)
"""Families of which no single text holds two answers, each after its prompt and with its end."""


@pytest.mark.parametrize("family", FAMILIES)
def test_one_sequence_where_one_text_holds_all_turns(tokenizer_of, family):
    turns = [say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d")]
    found = encoded(tokenizer_of(FAMILIES[family]), talk(*turns))
    assert len(found.sequences) == 1 + (family in SEPARATE)
    assert found.answers == 2


@pytest.mark.parametrize(
    ("family", "answer", "kind", "text"),
    [
        ("chatml", say("assistant", "b", reasoning_content="I ponder."), "thinking", "I ponder."),
        ("chatml", say("assistant", "b", thinking="hm"), "thinking", "hm"),
        ("chatml", say("assistant", "b", tool_calls=[CALL]), "tool_calls", "look"),
        (
            "prompt opens thinking",
            say("assistant", "<think>\nI ponder.\n</think>\n\nb"),
            "thinking",
            "I ponder.",
        ),
        ("words", say("assistant", "b", reasoning="why not"), "thinking", "why not"),
        # As rows of models have it whose prompt opens the thinking.
        (
            "prompt opens thinking",
            say("assistant", "I ponder.\n</think>\n\nb"),
            "thinking",
            "I ponder.",
        ),
    ],
)
def test_what_is_left_out_of_an_answer_is_an_error_that_names_it(
    tokenizer_of, family, answer, kind, text
):
    tokenizer = tokenizer_of(FAMILIES[family])
    row = talk(say("user", "a"), answer)
    with pytest.raises(DataError) as caught:
        encoded(tokenizer, row)
    said = str(caught.value)
    assert said.startswith("f:1: the chat template leaves out")
    assert "message 2" in said
    assert f"({text!r})" in said or text in said
    assert f"--drop {kind}" in said
    found = encoded(tokenizer, row, drop=(kind,))
    assert found.dropped == {kind}
    ((_, taught),) = supervised(tokenizer, found)
    assert "b" in taught
    assert text not in taught


QUIET = (
    "{% for m in messages %}{% if m['role'] in ('user', 'assistant') %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' }}{% if not m['tool_calls'] %}{{ m['content'] }}"
    "{% else %}{% for c in m['tool_calls'] %}{{ c['function'] | tojson }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("messages", "kind", "number"),
    [
        ([say("system", "be nice"), say("user", "a"), say("assistant", "b")], "system", 1),
        ([say("developer", "x"), say("user", "a"), say("assistant", "b")], "developer", 1),
        (
            [
                say("user", "a"),
                say("assistant", "", tool_calls=[CALL]),
                say("tool", "7"),
                say("assistant", "b"),
            ],
            "tool",
            3,
        ),
        ([say("user", "a"), say("assistant", "Wait…", tool_calls=[CALL])], "content", 2),
    ],
)
def test_what_is_left_out_of_a_prompt_is_an_error_too(tokenizer_of, messages, kind, number):
    tokenizer = tokenizer_of(QUIET)
    with pytest.raises(DataError, match=rf"message {number} \(.*--drop {kind} ") as caught:
        encoded(tokenizer, talk(*messages))
    assert repr(messages[number - 1]["content"]) in str(caught.value)
    assert encoded(tokenizer, talk(*messages), drop=(kind,)).dropped == {kind}


def test_short_and_rewritten_texts_are_not_taken_for_left_out(tokenizer_of):
    # JSON written anew, white space cut, quotes escaped: all of it stands in the text.
    source = CALLS.replace("ARGS", "(c['function']['arguments'] | tojson)").replace(
        "m['content']", "(m['content'] | trim | tojson if m['role'] == 'tool' else m['content'])"
    )
    tokenizer = tokenizer_of(source)
    call = {
        "function": {"name": "look", "arguments": {"say": 'a "b"', "n": 3.5, "deep": [{"é": "ü"}]}}
    }
    found = encoded(
        tokenizer,
        talk(
            say("user", " a "),
            say("assistant", "", tool_calls=[call]),
            say("tool", '{"x": "é \\"q\\""}'),
            say("assistant", "\n b\n"),
            tools=(TOOL,),
        ),
    )
    assert found.answers == 2
    assert not found.dropped


def test_arguments_go_in_as_the_template_takes_them(tokenizer_of):
    for how in ("(c['function']['arguments'] | tojson)", "c['function']['arguments']"):
        tokenizer = tokenizer_of(CALLS.replace("ARGS", how))
        found = encoded(
            tokenizer,
            talk(say("user", "a"), say("assistant", "", tool_calls=[CALL]), tools=(TOOL,)),
        )
        ((_, taught),) = supervised(tokenizer, found)
        assert taught == '<tool_call>look {"a": "b"}</tool_call><|im_end|>'


def test_thinking_goes_in_under_the_name_that_the_template_reads(tokenizer_of):
    tokenizer = tokenizer_of(FAMILIES["another last end"])
    for name in ("reasoning_content", "reasoning", "thinking"):
        row = talk(say("user", "a"), say("assistant", "b", **{name: "so it is"}))
        ((_, taught),) = supervised(tokenizer, encoded(tokenizer, row))
        assert taught == "<H>think<M>so it is<X><A><H>final<M>b<E>"


def test_a_template_for_tools_is_taken_where_a_row_has_tools(tokenizer_of):
    with_tools = CALLS.replace("ARGS", "(c['function']['arguments'] | tojson)")
    tokenizer = tokenizer_of({"default": FAMILIES["chatml"], "tool_use": with_tools})
    template = resolve_template(DataSpec(), tokenizer)
    assert template.tool_source == with_tools
    again = Template.from_dict(template.to_dict())
    assert again == template
    plain = encoded(tokenizer, talk(say("user", "a"), say("assistant", "b")), template=again)
    assert plain.answers == 1
    row = talk(say("user", "a"), say("assistant", "", tool_calls=[CALL]), tools=(TOOL,))
    ((asked, taught),) = supervised(tokenizer, encoded(tokenizer, row, template=again))
    assert '"name": "look"' in asked
    assert taught.startswith("<tool_call>look")
    assert asked == tokenizer.apply_chat_template(
        [say("user", "a")], tools=[TOOL], tokenize=False, add_generation_prompt=True
    )


OPTIONAL = FAMILIES["chatml"].replace(
    "{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "{{ '<|im_start|>assistant\\n' }}{% if style == 'curt' %}{{ 'Curt: ' }}{% endif %}{% endif %}",
)


def test_variables_of_a_template_are_checked_used_and_recorded(tokenizer_of):
    tokenizer = tokenizer_of(OPTIONAL)
    with pytest.raises(ConfigError, match=r"'stile' is no variable .*did you mean 'style'"):
        resolve_template(DataSpec(template_options={"stile": "curt"}), tokenizer)
    template = resolve_template(DataSpec(template_options={"style": "curt"}), tokenizer)
    assert Template.from_dict(template.to_dict()).options == {"style": "curt"}
    row = talk(say("user", "a"), say("assistant", "b"))
    ((asked, _),) = supervised(tokenizer, encoded(tokenizer, row, template=template))
    assert asked.endswith("assistant\nCurt: ")
    changed = template.changed("Be kind.", {"style": "long"})
    assert (changed.system, changed.options) == ("Be kind.", {"style": "long"})
    assert hash(changed) != hash(template)


@pytest.mark.parametrize("lead", ["", "\n  "])
def test_a_baked_template_writes_the_same_by_itself(tokenizer_of, lead):
    tokenizer = tokenizer_of(lead + OPTIONAL)
    options = {"style": "curt"}
    template = resolve_template(
        DataSpec(template_options=options, system='Say "é"\n& be kind.'), tokenizer
    )
    for messages in (
        [say("user", "a")],
        [say("system", "Mine."), say("user", "a"), say("assistant", "b"), say("user", "c")],
        [say("developer", "Mine."), say("user", "a")],
    ):
        ours = tokenizer.apply_chat_template(
            [dict(m) for m in template.with_system(tuple(messages))],
            tokenize=False,
            add_generation_prompt=True,
            **options,
        )
        theirs = tokenizer.apply_chat_template(
            messages, chat_template=template.baked(), tokenize=False, add_generation_prompt=True
        )
        assert theirs == ours


def test_empty_answers_are_refused_or_left_out_and_counted(tokenizer_of, tmp_path):
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
        '{"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": " "}]}\n'
    )
    spec = DataSpec(data=(str(file),), eval_share=0)
    with pytest.raises(DataError, match=r"rows.jsonl:2: message 2 .* is empty.*--drop empty"):
        load_data(spec, tokenizer)
    found = load_data(DataSpec(data=(str(file),), eval_share=0, drop=("empty",)), tokenizer)
    assert (len(found.train), found.train_counts.read, found.train_counts.empty) == (1, 2, 1)
    assert any("1 of 2 training rows were left out" in note for note in found.notes)


def test_notes_say_what_became_of_conversations(tokenizer_of, tmp_path):
    tokenizer = tokenizer_of(FAMILIES["last answer thinks"])
    file = tmp_path / "rows.jsonl"
    turn = '{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}'
    first = '{"role": "assistant", "content": "Welcome."}'
    file.write_text(f'{{"messages": [{turn}, {turn}]}}\n{{"messages": [{first}, {turn}]}}\n')
    found = load_data(DataSpec(data=(str(file),), eval_share=0), tokenizer)
    counts = found.train_counts
    assert (counts.read, counts.kept, counts.split, counts.sequences) == (2, 3, 1, 2)
    assert counts.context == 1
    said = " ".join(found.notes)
    assert "1 of 2 training rows became 2 sequences" in said
    assert "1 of 2 training rows begin with an answer to nothing" in said


def test_sequences_of_one_row_stay_on_one_side(tokenizer_of, tmp_path):
    tokenizer = tokenizer_of(FAMILIES["last answer thinks"])
    file = tmp_path / "rows.jsonl"
    rows = [
        f'{{"messages": [{{"role": "user", "content": "{i}"}}, {{"role": "assistant", "content": "b"}}, '
        f'{{"role": "user", "content": "{i}x"}}, {{"role": "assistant", "content": "d"}}]}}\n'
        for i in range(10)
    ]
    file.write_text("".join(rows))
    found = load_data(DataSpec(data=(str(file),), eval_share=0.3), tokenizer)
    sides = [{row.origin for row in table} for table in (found.train, found.eval)]
    assert not sides[0] & sides[1]
    assert len(found.eval) == 2 * len(found.eval_examples) > 0


def test_a_token_without_an_embedding_is_an_error_with_file_and_line(tokenizer_of, tmp_path):
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": "b<M>"}\n')
    spec = DataSpec(data=(str(file),), eval_share=0)
    unknown = tokenizer.convert_tokens_to_ids("<M>")
    load_data(spec, tokenizer, embeddings=unknown + 1)
    with pytest.raises(DataError, match=rf"rows.jsonl:2: .*'<M>' \(id {unknown}\)"):
        load_data(spec, tokenizer, embeddings=unknown)


def test_check_holds_what_serving_sends_against_what_is_trained(tokenizer_of):
    tokenizer = tokenizer_of(FAMILIES["last answer thinks"])
    template = _own(tokenizer)
    row = talk(
        say("user", "a"),
        say("assistant", "<think>\nponder\n</think>\n\nb"),
        say("user", "c"),
        say("assistant", "d"),
    )
    own = encoded(tokenizer, row).sequences
    first, second = served_turns(row, own, tokenizer, template)
    assert (first.number, first.sequence, first.parts_at) == (2, 0, None)
    assert "ponder" in "".join(first.later)
    assert (second.number, second.sequence, second.parts_at, second.later) == (4, 1, None, ())
    assert second.prompt_tokens == int(np.flatnonzero(own[1].weight)[0])
    # A prompt that was trained otherwise is marked at the token where the two part.
    other = own[1].ids.copy()
    other[5] += 1
    changed = (own[0], type(own[1])(other, own[1].weight, own[1].origin))
    assert [turn.parts_at for turn in served_turns(row, changed, tokenizer, template)] == [None, 5]
    pair = Example("f:1", prompt="a", completion="b")
    (only,) = served_turns(pair, encoded(tokenizer, pair).sequences, tokenizer, template)
    assert (only.number, only.parts_at) == (0, None)
    assert not served_turns(Example("f:1", text="a"), own, tokenizer, template)


def test_tools_that_a_template_mentions_and_does_not_write_are_missed(tokenizer_of):
    source = "{% if tools and tools | length > 9 %}{{ tools | tojson }}{% endif %}"
    tokenizer = tokenizer_of(source + FAMILIES["chatml"])
    row = talk(say("user", "a"), say("assistant", "b"), tools=(TOOL,))
    with pytest.raises(DataError, match=r"leaves out the tool definitions of the row \('look'\)"):
        encoded(tokenizer, row)
    assert encoded(tokenizer, row, drop=("tools",)).dropped == {"tools"}


def test_an_answer_of_thinking_alone_is_taught_where_it_is_written(tokenizer_of):
    row = talk(say("user", "a"), say("assistant", "", thinking="so it is"))
    found = encoded(tokenizer_of(FAMILIES["another last end"]), row)
    ((_, taught),) = supervised(tokenizer_of(FAMILIES["another last end"]), found)
    assert taught == "<H>think<M>so it is<X><A><H>final<M><E>"
    left_out = encoded(tokenizer_of(FAMILIES["chatml"]), row, drop=("thinking",))
    assert not left_out.sequences
