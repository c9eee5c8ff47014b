"""Done-when 1: the openai package, unchanged, against a running server."""

import math
import threading

import openai
import pytest

ASK = [{"role": "user", "content": "where is it?"}]


@pytest.fixture(scope="module")
def client(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_is_left(running):
    yield
    running.rest()


CHAT = "<|im_start|>user\nwhere is it?<|im_end|>\n<|im_start|>assistant\n"
MODELS = ["tiny-base", "small", "middle", "large"]


def test_models_are_the_base_and_its_adapters(client):
    listed = client.models.list().data
    assert [m.id for m in listed] == ["tiny-base", "large", "middle", "small"]
    assert client.models.retrieve("small").parent == "tiny-base"
    assert listed[1].lorakit["ranks"] == [32, 32]


@pytest.mark.parametrize("model", MODELS)
def test_a_greedy_chat_is_the_adapters_own_answer(client, alone, model):
    got = client.chat.completions.create(model=model, messages=ASK, temperature=0, max_tokens=12)
    assert got.choices[0].message.content == alone(model, CHAT, 12)
    assert got.choices[0].finish_reason in ("stop", "length")
    assert got.usage.prompt_tokens == len(CHAT) - 2 * len("<|im_start|>") - len("<|im_end|>") + 3


def test_answers_of_models_differ(client, alone):
    assert len({alone(model, CHAT, 12) for model in MODELS}) == 4


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_adds_up_to_the_answer_and_its_usage(client, alone, model):
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=ASK,
            temperature=0,
            max_completion_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == alone(model, CHAT, 12)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens <= 12
    assert len({c.id for c in chunks}) == 1


def test_all_models_at_once_answer_as_each_alone(client, alone):
    got = {}

    def ask(i, model):
        made = client.completions.create(model=model, prompt=f"no {i}", temperature=0, max_tokens=9)
        got[i, model] = made.choices[0].text

    threads = [threading.Thread(target=ask, args=(i, model)) for i in range(4) for model in MODELS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {(i, m): alone(m, f"no {i}", 9) for i in range(4) for m in MODELS}


def test_completions_take_texts_ids_and_several_of_either(client, alone):
    one = alone("small", "once", 6)
    ids = client.completions.create(model="small", prompt="once", max_tokens=1).usage.prompt_tokens
    assert ids == 4
    for prompt in ("once", ["once"], [[116, 115, 104, 106]]):
        got = client.completions.create(model="small", prompt=prompt, temperature=0, max_tokens=6)
        assert len(got.choices) == 1
        if not isinstance(prompt[0], list):
            assert got.choices[0].text == one
    many = client.completions.create(
        model="small", prompt=["once", "twice"], n=2, temperature=0, max_tokens=6
    )
    assert [c.index for c in many.choices] == [0, 1, 2, 3]
    assert [c.text for c in many.choices[:2]] == [one, one]


def test_a_seed_repeats_whoever_else_is_there(client):
    asked = {"model": "middle", "messages": ASK, "seed": 7, "temperature": 1.5, "max_tokens": 10}
    first = client.chat.completions.create(**asked, n=3, top_p=0.95, extra_body={"top_k": 50})
    others = threading.Thread(
        target=lambda: client.completions.create(model="large", prompt="x" * 50, max_tokens=40)
    )
    others.start()
    again = client.chat.completions.create(**asked, n=3, top_p=0.95, extra_body={"top_k": 50})
    others.join()
    said = [c.message.content for c in first.choices]
    assert said == [c.message.content for c in again.choices]
    assert len(set(said)) == 3


def test_a_stop_string_ends_the_answer_before_it(client, alone):
    whole = alone("middle", CHAT, 12)
    stop = whole[4:6]
    asked = {"model": "middle", "messages": ASK, "temperature": 0, "max_tokens": 12}
    got = client.chat.completions.create(**asked, stop=[stop, "never"])
    assert got.choices[0].message.content == whole[: whole.index(stop)]
    assert got.choices[0].finish_reason == "stop"
    streamed = client.chat.completions.create(**asked, stop=stop, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == whole[: whole.index(stop)]


def test_log_probabilities_of_chat_and_of_completions(client):
    asked = {"model": "small", "temperature": 0, "max_tokens": 4}
    got = client.chat.completions.create(**asked, messages=ASK, logprobs=True, top_logprobs=3)
    for token in got.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob <= 0
        assert sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1 + 1e-6
    streamed = client.chat.completions.create(
        **asked, messages=ASK, logprobs=True, top_logprobs=3, stream=True
    )
    pieces = [t for c in streamed for t in (c.choices[0].logprobs.content or [])]
    # Another composition of the step: equal but for the last bits of float32.
    assert [t.token for t in pieces] == [t.token for t in got.choices[0].logprobs.content]
    old = client.completions.create(**asked, prompt="once", logprobs=2)
    assert len(old.choices[0].logprobs.tokens) == len(old.choices[0].logprobs.token_logprobs)
    plain = [t for t in old.choices[0].logprobs.tokens if not t.startswith("<")]
    assert "".join(plain) == old.choices[0].text
    assert old.choices[0].logprobs.text_offset[0] == 0


def test_a_shared_beginning_is_read_once(client):
    long = "the same long system prompt, over and over again. " * 3
    turns = [{"role": "system", "content": long}, *ASK]
    client.chat.completions.create(model="small", messages=turns, max_tokens=2)
    again = client.chat.completions.create(
        model="small", messages=[turns[0], {"role": "user", "content": "and now?"}], max_tokens=2
    )
    assert again.usage.prompt_tokens_details.cached_tokens >= 100
    other = client.chat.completions.create(model="middle", messages=turns, max_tokens=2)
    assert other.usage.prompt_tokens_details.cached_tokens == 0


def test_an_unknown_adapter_is_a_404_that_names_the_nearest(client):
    with pytest.raises(openai.NotFoundError, match="did you mean 'small'"):
        client.chat.completions.create(model="smal", messages=ASK)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"max_tokens": 10_000}, "at most 60 are given"),
        ({"presence_penalty": 2.1}, "presence_penalty: Input should be less than or equal to 2"),
        ({"logit_bias": {"x": 1}}, "'x' is no token id"),
        ({"logit_bias": {"300": 1}}, "logit_bias has the token 300, which is beyond"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "no place for"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"temperature": 3}, "temperature"),
        ({"top_logprobs": 2}, "needs logprobs"),
        ({"n": 100}, "at most 16"),
        ({"messages": [{"role": "user", "content": "x" * 1000}]}, "at most 300 are read"),
        ({"messages": [*ASK, {"role": "assistant", "content": "here"}]}, "must be the user's"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_cannot_be_done_is_a_400_that_says_so(client, more, said):
    with pytest.raises(openai.BadRequestError, match=said):
        client.chat.completions.create(**{"model": "small", "messages": ASK, **more})


def test_earlier_turns_are_part_of_the_prompt(client):
    turns = [*ASK, {"role": "assistant", "content": "there"}, {"role": "user", "content": "why?"}]
    one = client.chat.completions.create(model="small", messages=ASK, max_tokens=1)
    more = client.chat.completions.create(model="small", messages=turns, max_tokens=1)
    assert more.usage.prompt_tokens > one.usage.prompt_tokens + len("there") + len("why?")


def test_loading_is_off_unless_it_was_allowed(client):
    for path, body in (
        ("/load_lora_adapter", {"lora_name": "x", "lora_path": "small"}),
        ("/unload_lora_adapter", {"lora_name": "small"}),
    ):
        with pytest.raises(openai.PermissionDeniedError, match="allow-loading"):
            client.post(path, body=body, cast_to=object)
