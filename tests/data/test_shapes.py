"""Which columns mean what, and what is said when they do not fit."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit.data import DataSpec, Row, load_data, read_rows, recognise
from lorakit.data.columns import suggest, suggest_prompt
from lorakit.errors import ConfigError, DataError


def row(line=1, **fields):
    return Row("f.jsonl", line, fields)


def example(spec=None, **fields):
    spec = spec or DataSpec()
    return recognise(row(**fields), spec).example(row(**fields))


def refused(spec=None, **fields):
    with pytest.raises(DataError) as caught:
        example(spec, **fields)
    return str(caught.value)


USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"prompt": "a", "completion": "b"},
            "rows are prompt + completion: completions are supervised",
        ),
        (
            {"messages": [USER, ASSISTANT], "id": 3},
            "rows are conversations: every assistant message is supervised; not used: 'id'",
        ),
        (
            {"instruction": "a", "input": "", "output": "b"},
            "rows are instruction (+ input) + output: outputs are supervised",
        ),
        (
            {"text": "a", "intent": "b"},
            "rows are text: every token is supervised; not used: 'intent'",
        ),
    ],
)
def test_the_shape_is_recognised_and_said(fields, said):
    assert recognise(row(**fields), DataSpec()).description == said


def test_prompt_and_completion():
    found = example(prompt="a", completion=["x", {"y": 1}])
    assert (found.prompt, found.completion) == ("a", '["x", {"y": 1}]')
    assert (found.question, found.answer, found.origin) == ("a", '["x", {"y": 1}]', "f.jsonl:1")


def test_instruction_with_and_without_input():
    assert example(instruction="a", input="b", output="c").prompt == "a\n\nb"
    assert example(instruction="a", input=None, output="c").prompt == "a"
    assert example(instruction="a", output="c").completion == "c"


def test_prompt_and_completion_as_lists_of_messages():
    found = example(prompt=[USER], completion=[ASSISTANT])
    assert [m["role"] for m in found.messages] == ["user", "assistant"]


@pytest.mark.parametrize("nothing", ["", " \n", None])
def test_an_empty_answer_is_left_to_whoever_trains_on_it(nothing):
    found = example(prompt="a", completion=nothing)
    assert found.completion == (nothing or "")
    found = example(messages=[USER, {"role": "assistant", "content": nothing}])
    assert found.messages[1]["content"] == (nothing or "")


def test_messages_are_cleaned_as_openai_writes_them():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    found = example(
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "42"},
            {"role": "assistant", "content": "it is 42", "refusal": None},
        ],
        tools='[{"type": "function"}]',
    )
    assert found.messages[0]["content"] == "xy"
    assert found.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert found.messages[1]["content"] == ""
    assert "refusal" not in found.messages[3]
    assert found.tools == ({"type": "function"},)
    assert (found.question, found.answer) == ("42", "it is 42")
    asked = example(messages=[USER, {"role": "assistant", "tool_calls": [call]}])
    assert json.loads(asked.answer) == [{"name": "f", "arguments": {"a": 1}}]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"question": "a", "answer": "b"}, "--prompt '{question}' --completion '{answer}'"),
        ({"prompt": None, "completion": "b"}, "'prompt' is null"),
        ({"text": ""}, "'text' is empty"),
        ({"messages": "x"}, "'messages' is text but not JSON"),
        ({"messages": []}, "no message has the role 'assistant'"),
        ({"messages": [USER]}, "no message has the role 'assistant'"),
        ({"messages": [USER, "x"]}, 'a list that holds "x"'),
        ({"messages": {"a": 1}}, "must be a list of objects; it is of type dict"),
        (
            {"messages": [{"role": "asistant", "content": "x"}, ASSISTANT]},
            "message 1 has the role 'asistant'; did you mean 'assistant'?",
        ),
        ({"messages": [{"content": "x"}, ASSISTANT]}, "message 1 has no role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ASSISTANT]},
            "a content part of type 'image_url'",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "f", "arguments": "{"}}],
                    }
                ]
            },
            "the arguments of 'f' are not JSON",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "needs function.name"),
    ],
)
def test_a_row_that_does_not_fit_says_why(fields, says):
    said = refused(**fields)
    assert said.startswith("f.jsonl:1: ")
    assert says in said


def test_a_later_row_without_the_column_names_the_nearest():
    shape = recognise(row(prompt="a", completion="b"), DataSpec())
    with pytest.raises(DataError) as caught:
        shape.example(row(line=7, prompt="a", completoin="b"))
    assert str(caught.value).startswith("f.jsonl:7: no column 'completion'")
    assert str(caught.value).endswith("this row has 'completoin': rename it")


def mapped(prompt, completion="{answer}", **fields):
    return example(DataSpec(prompt=prompt, completion=completion), answer="x", **fields)


def test_a_mapping_reads_nested_values_and_writes_json():
    fields = {"a": {"b": {"c": "deep"}, "l": ["x", "é"]}, "n": 3, "t": True, "dot.ted": "d"}
    found = mapped("{{{a.b.c}}} {a.l.1} {a.l} {n} {t} {dot.ted} {a.b}", **fields)
    assert found.prompt == '{deep} é ["x", "é"] 3 true d {"c": "deep"}'


def test_numbers_keep_their_digits(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"p": 3.50, "o": {"e": 1e-4, "z": null}, "answer": 1.0}')
    (only,) = read_rows([str(path)])
    spec = DataSpec(prompt="{p} {o}", completion="{answer}")
    found = recognise(only, spec).example(only)
    assert (found.prompt, found.completion) == ('3.50 {"e": 1e-4, "z": null}', "1.0")


def test_what_a_mapping_leaves_out_is_said():
    spec = DataSpec(prompt="{a.b}", completion="{answer}")
    said = recognise(row(a={"b": 1}, answer="x", id=1), spec).description
    assert said == "rows are mapped: prompt '{a.b}', completion '{answer}'; not used: 'id'"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_doubled_braces_are_literal_and_values_are_left_alone(value):
    template = value.replace("{", "{{").replace("}", "}}") + "{question}"
    assert mapped(template, question=value).prompt == value + value


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (
            "{questoin}",
            "the row has no column 'questoin', which prompt '{questoin}' reads; did you mean 'question'?",
        ),
        ("{question.a}", "'question' has no key 'a'"),
        (
            "{meta.tpoic}",
            "'meta' has no key 'tpoic', which prompt '{meta.tpoic}' reads; did you mean 'topic'?",
        ),
        ("{list.5}", "'list' has no key '5'"),
        ("{nothing}", "'nothing' is null"),
    ],
)
def test_a_column_that_is_not_there(prompt, says):
    fields = {"question": "q", "meta": {"topic": "t"}, "list": [1], "nothing": None, "answer": "x"}
    said = refused(DataSpec(prompt=prompt, completion="{answer}"), **fields)
    assert said.startswith("f.jsonl:1: ")
    assert says in said


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ('{"q": "{question}"}', "a single brace near"),
        ("{question", "a single brace near"),
        ("question}", "a single brace near"),
        ("{}", "a single brace near"),
        ("no column", "names no column"),
    ],
)
def test_a_mapping_that_cannot_be_read(prompt, says):
    with pytest.raises(ConfigError, match=says):
        mapped(prompt, question="q")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"{text}\n", "q\n"),
        (r"Q:\t{text}\nA:", "Q:\tq\nA:"),
        ("{text}\n", "q\n"),
        (r"{text}\\n", r"q\n"),
        (r"a\\tb {text}", r"a\tb q"),
        (r"C:\dir {text}", r"C:\dir q"),
        (r"{{\n}}{text}", "{\n}q"),
    ],
)
def test_newlines_and_tabs_are_what_a_shell_leaves_of_them(typed, meant):
    found = example(DataSpec(prompt=typed, completion=typed), text="q")
    assert (found.prompt, found.completion) == (meant, meant)
    assert example(DataSpec(text=typed), text="q").text == meant


def test_a_backslash_in_a_row_is_the_rows_own():
    assert example(DataSpec(prompt=r"{text}\n", completion="{text}"), text=r"a\nb").prompt == (
        "a\\nb\n"
    )


def test_the_note_about_a_missing_newline_knows_both(tmp_path, plain):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"q": "why", "a": "so"}\n' * 4)

    def notes(prompt):
        spec = DataSpec(data=(str(file),), prompt=prompt, completion="{a}", eval_share=0)
        return " ".join(load_data(spec, plain).notes)

    for prompt in (r"{q}\n", "{q}\n", r"{q}\t", "{q} "):
        assert "No white space" not in notes(prompt)
    for prompt in (r"{q}\\n", "{q}"):
        assert "No white space" in notes(prompt)
    assert r"prompt '{q}\n'" in notes(r"{q}\n")


NAMES = st.sampled_from(
    ["text", "label", "question", "answer", "input", "output", "source", "target", "id", "en", "Q"]
)


@given(st.dictionaries(NAMES, st.sampled_from(["x", 1, None, ["a"], {"en": "a", "de": "b"}])))
def test_advice_never_names_a_column_twice(fields):
    for advice in (suggest(fields), suggest_prompt(fields)):
        named = re.findall(r"\{([^{}]*)\}", advice)
        assert len(named) == len(set(named))
