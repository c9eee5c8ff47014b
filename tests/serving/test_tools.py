"""Tools through the openai package: into the prompt, out of answers whole and streamed, and forced."""

import json
import re
from dataclasses import replace

import openai
import pytest
from servers import SPEC, Running, serving

from families import tiny, tokenizer
from lorakit.data import Template, encode_prompt
from lorakit.data.shapes import Example
from lorakit.execution.tools.form import ToolForm, find_form
from lorakit.execution.tools.reader import ToolReader
from lorakit.execution.tools.values import ToolCall, end_of
from tool_templates import MARKS, NAMES, TEMPLATES, TOOLS, TWO, add_marks

ASK = [{"role": "user", "content": "where is it?"}]
CALLS = [("find", {"town": "Oslo"}), ("count", {"n": 2})]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_form_is_the_one_that_the_template_writes(name):
    form = find_form(add_marks(tokenizer()), Template("chat", TEMPLATES[name]))
    assert (form.name if form else None) == NAMES.get(name)


def form_of(name):
    form = find_form(add_marks(tokenizer()), Template("chat", TEMPLATES[name]))
    assert form is not None
    return form


def read(form, text, size, several=True):
    reader, parts = ToolReader(form, several=several), []
    for at in range(0, len(text), size):
        parts += reader.feed(text[at : at + size])
    parts += reader.finish()
    joined = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


FIND = '{"name": "find", "arguments": {"town": "}] \\" Oslo"}}'
CASES = [
    # (form, answer, what it is)
    *((name, TWO[name], [ToolCall(n, json.dumps(a)) for n, a in CALLS]) for name in TWO),
    *((name, f"I look.\n\n{TWO[name]}", ["I look.", "…"]) for name in TWO),
    *((name, "no call, {a: 1} <b> [c] ; ", ["no call, {a: 1} <b> [c] ; "]) for name in TWO),
    *((name, TWO[name][: len(TWO[name]) // 2 - 16], None) for name in TWO),
    ("hermes", f"<tool_call>{FIND}</tool_call>", [ToolCall("find", '{"town": "}] \\" Oslo"}')]),
    ("hermes", f"<tool_call>{FIND}", [ToolCall("find", '{"town": "}] \\" Oslo"}')]),
    ("hermes", "<tool_call>{'name': 'f'}</tool_call>", ["<tool_call>{'name': 'f'}</tool_call>"]),
    ("hermes", '<tool_call>{"name": "f", "arguments": NaN}</tool_call>', None),
    ("hermes", '<tool_call>{"arguments": {}}</tool_call>', None),
    ("hermes", "<tool_call>\n<function=f>\n</function>\n</tool_call>", None),
    ("hermes", "a < b <tool_ca", None),
    ("hermes", '<tool_call>{"name": "f", "arg</tool_call> so', None),
    ("llama3_json", '{"name": "Ann", "age": 3}', None),
    ("llama3_json", '{"name": "f", "parameters": {}, "arguments": {}}', None),
    ("llama3_json", '{"answer": {"name": "f", "parameters": {}}}', None),
    ("llama3_json", '{"type": "function", "name": "f", "parameters": {}}', [ToolCall("f", "{}")]),
    ("llama3_json", '{"name": "f", "parameters": "{\\"a\\": 1}"}', [ToolCall("f", '{"a": 1}')]),
    ("llama3_tagged", "<|python_tag|>print(1)", None),
    ("mistral_list", '[TOOL_CALLS] [{"name": "f"', None),
    ("mistral_list", '[TOOL_CALLS] [{"name": 3, "arguments": {}}]', None),
    ("mistral_named", "[TOOL_CALLS]f[ARGS]oops", None),
    ("mistral_named", "[TOOL_CALLS] !", None),
    ("mistral_named", '[TOOL_CALLS]f[CALL_ID]a1[ARGS]{"é": 1}', [ToolCall("f", '{"é": 1}')]),
]


@pytest.mark.parametrize(("name", "text", "parts"), CASES)
def test_a_reader_gives_the_same_whatever_the_pieces(name, text, parts):
    form = form_of(name)
    if parts is None:
        parts = [text]  # what is no call stays as it is
    for size in (1, 2, 3, 7, 1000):
        got = read(form, text, size)
        if parts[-1] == "…":
            assert got[0] == parts[0]
            assert [(c.name, json.loads(c.arguments)) for c in got[1:]] == CALLS
        elif text.startswith(TWO[name][:8]) and not isinstance(parts[0], str):
            assert [(c.name, json.loads(c.arguments)) for c in got] == [
                (c.name, json.loads(c.arguments)) for c in parts
            ]
        else:
            assert got == parts, size


def test_a_broken_call_leaves_the_whole_ones_and_the_text_after_them():
    text = f'<tool_call>{{"name": "f", "arg</tool_call><tool_call>{FIND}</tool_call> so'
    broken, call, rest = read(form_of("hermes"), text, 3)
    assert broken == '<tool_call>{"name": "f", "arg</tool_call>'
    assert call.name == "find"
    assert rest == " so"


def test_one_call_alone_where_no_others_are_wanted():
    for name in TWO:
        (call,) = read(form_of(name), TWO[name], 4, several=False)
        assert call.name == "find"


def test_the_end_of_an_object_is_outside_of_its_strings():
    for value in ({"a": '}{][\\"'}, [1, {"b": ["]"]}], {}, []):
        text = json.dumps(value)
        assert end_of(text + " more }", 0) == len(text)
        for cut in range(1, len(text)):
            assert end_of(text[:cut], 0) is None


# --- through a server


@pytest.fixture(scope="module", params=list(TWO))
def served(request, tmp_path_factory) -> tuple[Running, str]:
    root = tmp_path_factory.mktemp(request.param)
    made = add_marks(tokenizer(), special=request.param != "llama3_json")
    made.chat_template = TEMPLATES[request.param]
    tiny("llama", vocab_size=320, max_position_embeddings=4096).save_pretrained(root / "base")
    made.save_pretrained(root / "base")
    patch = pytest.MonkeyPatch()
    patch.setenv("LORAKIT_CACHE", str(root / "cache"))
    spec = replace(SPEC, max_prompt=1500, max_output=300, cache_gb=0.1)
    with serving(root / "base", root / "store", spec) as server:
        yield server, request.param
    patch.undo()


@pytest.fixture
def client(served):
    url = f"{served[0].url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made
    served[0].rest()


def ask(client, **more):
    asked = {"model": "base", "messages": ASK, "tools": TOOLS, "max_tokens": 250, **more}
    return client.chat.completions.create(**asked)


def streamed(client, **more):
    """Content, calls and end of a stream, put together as clients do."""
    content, calls, finish = "", {}, None
    for chunk in ask(client, stream=True, **more):
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            if call.index not in calls:
                assert call.id
                assert call.type == "function"
                assert call.function.name
                calls[call.index] = [call.id, call.function.name, ""]
            else:
                assert call.id is None
                assert call.function.name is None
            calls[call.index][2] += call.function.arguments
        assert finish is None
        finish = choice.finish_reason
    return content, list(calls.values()), finish


def valid(name, arguments):
    arguments = json.loads(arguments)
    if name == "find":
        return list(arguments) == ["town"] and arguments["town"] in ("Oslo", "Rome")
    return name == "count" and list(arguments) == ["n"] and arguments["n"] in range(10)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_required_call_is_one_by_its_schema(client, served, seed):
    got = ask(client, tool_choice="required", parallel_tool_calls=False, seed=seed)
    (choice,) = got.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert valid(call.function.name, call.function.arguments)
    if served[1].startswith("mistral"):
        assert len(call.id) == 9
        assert call.id.isalnum()
    content, calls, finish = streamed(
        client, tool_choice="required", parallel_tool_calls=False, seed=seed
    )
    assert (content, finish) == ("", "tool_calls")
    assert [c[1:] for c in calls] == [[call.function.name, call.function.arguments]]


def test_a_named_function_is_the_one_that_is_called(client):
    for name in ("find", "count"):
        chosen = {"type": "function", "function": {"name": name}}
        got = ask(client, tool_choice=chosen, parallel_tool_calls=False, seed=5)
        (call,) = got.choices[0].message.tool_calls
        assert call.function.name == name
        assert valid(name, call.function.arguments)


def test_calls_go_back_into_the_prompt_with_their_results(client, served):
    first = ask(client, tool_choice="required", parallel_tool_calls=False, seed=1)
    message = first.choices[0].message
    call = message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "by the sea"}
    again = ask(client, messages=[*ASK, message, result], max_tokens=1)
    row = Example(
        "row",
        messages=(
            *ASK,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {
                            "name": call.function.name,
                            "arguments": json.loads(call.function.arguments),
                        },
                    }
                ],
            },
            result,
            {"role": "assistant", "content": "x"},
        ),
        tools=tuple(TOOLS),
    )
    service_tokenizer = add_marks(tokenizer(), special=served[1] != "llama3_json")
    template = Template("chat", TEMPLATES[served[1]])
    assert again.usage.prompt_tokens == len(encode_prompt(row, service_tokenizer, template))


def exactly(text, special):
    """The grammar of one text; the marks in it are special tokens."""
    made = add_marks(tokenizer(), special=special)
    parts = re.split("|".join(map(re.escape, MARKS)) if special else "(?!)", text)
    marks = re.findall("|".join(map(re.escape, MARKS)) if special else "(?!)", text)
    terminals = [json.dumps(parts[0])]
    for mark, part in zip(marks, parts[1:], strict=True):
        terminals += [f"<[{made.convert_tokens_to_ids(mark)}]>", json.dumps(part)]
    return "start: " + " ".join(t for t in terminals if t != '""')


def test_auto_reads_what_the_model_writes_and_none_does_not(client, served):
    said = "So:\n" + TWO[served[1]]
    written = {"structured_outputs": {"grammar": exactly(said, served[1] != "llama3_json")}}
    (choice,) = ask(client, extra_body=written).choices
    assert choice.message.content == "So:"
    assert choice.finish_reason == "tool_calls"
    calls = [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls]
    assert calls == CALLS
    assert len({c.id for c in choice.message.tool_calls}) == 2
    content, calls, finish = streamed(client, extra_body=written)
    assert (content, finish) == ("So:", "tool_calls")
    assert [(name, json.loads(arguments)) for _, name, arguments in calls] == CALLS
    (choice,) = ask(client, extra_body=written, tool_choice="none").choices
    marks = [] if served[1] == "llama3_json" else MARKS  # special tokens are no text
    for mark in marks:
        said = said.replace(mark, "")
    assert choice.message.content == said
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"


def test_a_call_that_is_cut_off_is_text(client):
    got = ask(client, tool_choice="required", seed=1, max_tokens=12)
    assert got.choices[0].finish_reason == "length"
    assert got.choices[0].message.tool_calls is None
    assert got.choices[0].message.content


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "'custom' are not supported"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "two tools are called 'find'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "name"),
        ({"tools": [], "tool_choice": "required"}, "there are no tools"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "fnd"}}},
            "no tool 'fnd'; did you mean 'find'",
        ),
        (
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            "cannot have a response_format",
        ),
        (
            {
                "messages": [
                    *ASK,
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {
                                "id": "1",
                                "type": "function",
                                "function": {"name": "f", "arguments": "{"},
                            }
                        ],
                    },
                    *ASK,
                ]
            },
            "arguments are not JSON",
        ),
    ],
)
def test_what_is_no_tool_is_a_400_that_names_it(client, more, said):
    with pytest.raises(openai.BadRequestError, match=said):
        ask(client, **more)


def test_a_forms_marks_are_found_with_their_ids():
    form = form_of("mistral_named")
    made = add_marks(tokenizer())
    assert isinstance(form, ToolForm)
    assert made.convert_tokens_to_ids("[TOOL_CALLS]") in form.specials
