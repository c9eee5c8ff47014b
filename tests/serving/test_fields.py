"""Every field of OpenAI's API, taken from the openai package's own types, at null and at rest.

What a field's rest is stands in OpenAI's documentation and is written down here; a field that a new
version of the package adds fails the test until it is decided what it means here.
"""

import inspect
import typing
import urllib.error
import urllib.request

import openai
import openai.types.chat.completion_create_params as chat_types
import openai.types.completion_create_params as text_types
import pytest
from test_attacks import call

from families import tokenizer

ASK = [{"role": "user", "content": "where is it?"}]
CHAT = {"model": "small", "messages": ASK, "temperature": 0, "max_tokens": 6}
TEXT = {"model": "small", "prompt": "where is it?", "temperature": 0, "max_tokens": 6}

# Values at which OpenAI's own default is, or which ask for nothing; null besides.
REST = {
    "audio": [],
    "best_of": [1],
    "echo": [False],
    "frequency_penalty": [0, 0.0],
    "function_call": ["none", "auto"],
    "functions": [[]],
    "logit_bias": [{}],
    "logprobs": [False],
    "max_completion_tokens": [6],
    "max_tokens": [6],
    "metadata": [{}, {"run": "7"}],
    "modalities": [["text"]],
    "moderation": [],
    "n": [1],
    "parallel_tool_calls": [True, False],
    "prediction": [],
    "presence_penalty": [0, 0.0],
    "prompt_cache_key": ["any"],
    "prompt_cache_options": [{}, {"mode": "implicit"}],
    "prompt_cache_retention": ["in_memory"],
    "reasoning_effort": ["none", "medium"],
    "response_format": [{"type": "text"}],
    "safety_identifier": ["somebody"],
    "seed": [7],
    "service_tier": ["auto", "default"],
    "stop": [[], ["never said by anyone"]],
    "store": [False],
    "stream": [False],
    "stream_options": [{}, {"include_usage": False}],
    "suffix": [""],
    "temperature": [0, 0.0],
    "tool_choice": ["none", "auto"],
    "tools": [[]],
    "top_logprobs": [0],
    "top_p": [1, 1.0],
    "user": ["somebody"],
    "verbosity": ["medium"],
    "web_search_options": [],
}
# And what is not done, which has to be said and not ignored.
REFUSED = {
    "audio": {"voice": "alloy", "format": "mp3"},
    "best_of": 3,
    "echo": True,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "modalities": ["text", "audio"],
    "moderation": {"model": "any"},
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "high",
    "service_tier": "flex",
    "store": True,
    "suffix": "x",
    "verbosity": "high",
    "web_search_options": {},
}
REQUIRED = ("model", "messages", "prompt")


def fields(module):
    """Names of the fields that a client may send, streaming among them."""
    found = set()
    for _, kind in inspect.getmembers(module, inspect.isclass):
        if kind.__name__.startswith("CompletionCreateParams"):
            found |= set(typing.get_type_hints(kind))
    return sorted(found - set(REQUIRED))


FIELDS = [("chat", name) for name in fields(chat_types)]
FIELDS += [("text", name) for name in fields(text_types)]


@pytest.fixture(scope="module")
def send(running):
    def post(kind, **more):
        path, usual = ("chat/completions", CHAT) if kind == "chat" else ("completions", TEXT)
        status, _, got = call(f"{running.url}/v1/{path}", {**usual, **more})
        return status, got

    return post


@pytest.fixture(scope="module")
def usual(send):
    return {kind: said(send(kind)) for kind in ("chat", "text")}


def said(answer):
    status, got = answer
    assert status == 200, got
    (choice,) = got["choices"]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return text, choice["finish_reason"], got["usage"]["completion_tokens"]


def test_the_list_is_the_packages_own():
    names = {name for _, name in FIELDS}
    assert names == set(REST), names ^ set(REST)
    assert len(FIELDS) >= 50


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_null_and_rest_change_nothing(send, usual, kind, name):
    values = [] if name in ("max_tokens", "temperature") else [None]
    for value in [*values, *REST[name]]:
        if kind == "text" and name == "logprobs" and value is False:
            continue  # a number there
        assert said(send(kind, **{name: value})) == usual[kind], (name, value)


@pytest.mark.parametrize(("kind", "name"), [f for f in FIELDS if f[1] in REFUSED])
def test_what_is_not_done_is_refused_by_name(send, kind, name):
    status, got = send(kind, **{name: REFUSED[name]})
    assert status == 400
    assert name in got["error"]["message"]


def test_all_of_them_at_once(send, usual):
    for kind in ("chat", "text"):
        mine = [name for k, name in FIELDS if k == kind]
        everything = {n: REST[n][0] for n in mine if REST[n] and n != "logprobs"}
        assert said(send(kind, **everything)) == usual[kind]
        nulls = {n: None for n in mine if n not in ("max_tokens", "temperature")}
        assert said(send(kind, **nulls)) == usual[kind]


VLLM = {
    "use_beam_search": (False, True),
    "length_penalty": (1.0, 2.0),
    "min_p": (0.0, None),
    "top_k": (-1, None),
    "repetition_penalty": (1.0, None),
    "stop_token_ids": ([], None),
    "include_stop_str_in_output": (False, None),
    "ignore_eos": (False, None),
    "min_tokens": (0, None),
    "skip_special_tokens": (True, None),
    "spaces_between_special_tokens": (True, False),
    "truncate_prompt_tokens": (-1, None),
    "prompt_logprobs": (None, 1),
    "allowed_token_ids": (None, None),
    "bad_words": ([], None),
    "priority": (0, 3),
    "request_id": ("any", None),
    "return_token_ids": (False, True),
    "return_tokens_as_token_ids": (False, True),
    "logprob_token_ids": ([], [1]),
    "cache_salt": (None, "salt"),
    "kv_transfer_params": (None, {"a": 1}),
    "vllm_xargs": ({}, {"a": 1}),
    "structured_outputs": (None, None),
    "guided_json": (None, {}),
    "guided_choice": (None, ["a"]),
}
VLLM_CHAT = {
    "add_generation_prompt": (True, False),
    "continue_final_message": (False, True),
    "chat_template": (None, "{{ messages }}"),
    "chat_template_kwargs": ({}, {"no_such_variable": 1}),
    "documents": ([], [{"text": "x"}]),
    "mm_processor_kwargs": ({}, {"a": 1}),
    "include_reasoning": (True, False),
    "add_special_tokens": (False, True),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("chat", "text") for name in VLLM]
    + [("chat", name) for name in VLLM_CHAT],
)
def test_vllms_fields_too(send, usual, kind, name):
    rest, other = {**VLLM, **VLLM_CHAT}[name]
    for value in (None, rest):
        assert said(send(kind, **{name: value})) == usual[kind]
    if other is not None:
        status, got = send(kind, **{name: other})
        assert status == 400
        assert name in got["error"]["message"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"temprature": 1}, "there is no field 'temprature'; did you mean 'temperature'"),
        ({"max_token": 1}, "did you mean 'max_tokens'"),
        ({"respons_format": {}}, "did you mean 'response_format'"),
        ({"messages": [{"role": "user", "contents": "x"}]}, "did you mean 'content'"),
        ({"stream_options": {"include_usag": True}}, "did you mean 'include_usage'"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_p": 1.5}, "min_p"),
        ({"min_tokens": 7}, "min_tokens is 7, and the answer has at most 6"),
        ({"logit_bias": {"1.5": 1}}, "'1.5' is no token id"),
        ({"logit_bias": {"-1": 1}}, "'-1' is no token id"),
        ({"logit_bias": {"5": "much"}}, "logit_bias"),
        ({"stop_token_ids": [10_000]}, "stop_token_ids has the token 10000"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words"),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs"),
        ({"stream_options": {"include_usage": True}}, "set stream"),
    ],
)
def test_what_is_wrong_is_named(send, more, message):
    status, got = send("chat", **more)
    assert status == 400
    assert message in got["error"]["message"]


def test_numbers_that_are_none_are_refused(running):
    for text in ("NaN", "Infinity", "-Infinity"):
        for field in ('"temperature": {}', '"logit_bias": {{"5": {}}}', '"min_p": {}'):
            body = '{"model": "small", "prompt": "x", "max_tokens": 1, ' + field.format(text) + "}"
            asked = urllib.request.Request(f"{running.url}/v1/completions", body.encode())
            asked.add_header("Content-Type", "application/json")
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(asked, timeout=10)
            with error.value:
                assert error.value.code == 400


# --- what a conversation may hold


def test_messages_in_all_their_forms_are_the_same_prompt(send):
    plain = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "where is it?"},
    ]
    parts = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "short"}],
        },
        {"role": "user", "content": [{"type": "text", "text": "where is it?"}], "name": None},
    ]
    one, other = send("chat", messages=plain), send("chat", messages=parts)
    assert said(one) == said(other)
    assert one[1]["usage"]["prompt_tokens"] == other[1]["usage"]["prompt_tokens"]
    earlier = [*plain, {"role": "assistant", "content": "there"}, *ASK]
    nulls = {"refusal": None, "audio": None, "function_call": None, "tool_calls": None}
    with_nulls = [*plain, {"role": "assistant", "content": "there", **nulls}, *ASK]
    assert said(send("chat", messages=earlier)) == said(send("chat", messages=with_nulls))


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "image_url",
        ),
        ({"role": "user", "content": None}, "content is missing"),
        ({"role": "user"}, "content is missing"),
        ({"role": "function", "name": "f", "content": "x"}, "role"),
        ({"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}, "function"),
        ({"role": "user", "content": "x", "tool_call_id": "1"}, "tool_call_id"),
    ],
)
def test_a_message_that_is_none_is_named(send, message, text):
    status, got = send("chat", messages=[message])
    assert status == 400
    assert text in got["error"]["message"]


# --- vLLM's fields that are done


@pytest.fixture(scope="module")
def client(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def complete(client, **more):
    known = {k: more.pop(k) for k in ("stop", "max_tokens", "logprobs") if k in more}
    asked = {
        "model": "small",
        "prompt": "where is it?",
        "temperature": 0,
        "max_tokens": 12,
        **known,
    }
    (choice,) = client.completions.create(**asked, extra_body=more).choices
    return choice


def test_stop_strings_are_shown_where_wished(client):
    whole = complete(client).text
    stop = whole[3:5]
    assert complete(client, stop=[stop]).text == whole[: whole.index(stop)]
    shown = complete(client, stop=[stop], include_stop_str_in_output=True).text
    assert shown == whole[: whole.index(stop)] + stop


def test_stop_token_ids_end_an_answer_before_them(client):
    whole = complete(client).text
    letter = next(c for c in whole if c.isascii() and c.isprintable())
    (id,) = tokenizer()(letter, add_special_tokens=False)["input_ids"]
    cut = complete(client, stop_token_ids=[id])
    assert cut.text == whole[: whole.index(letter)]
    assert cut.finish_reason == "stop"
    least = complete(client, stop_token_ids=[id], min_tokens=12)
    assert letter not in least.text
    assert least.finish_reason == "length"


def test_bad_words_and_allowed_tokens(client):
    whole = complete(client).text
    letter = next(c for c in whole if c.isascii() and c.isprintable())
    assert letter not in complete(client, bad_words=[letter]).text
    ids = [tokenizer()(c, add_special_tokens=False)["input_ids"][0] for c in "xyz"]
    assert set(complete(client, allowed_token_ids=ids).text) <= set("xyz")


def test_the_end_of_a_long_prompt_is_read(client, alone):
    cut = complete(client, truncate_prompt_tokens=4)
    assert cut.text == alone("small", " it?", 12)
    long = "x" * 1000 + "where is it?"
    got = client.completions.create(
        model="small",
        prompt=long,
        temperature=0,
        max_tokens=3,
        extra_body={"truncate_prompt_tokens": -1},
    )
    assert got.usage.prompt_tokens == 300
