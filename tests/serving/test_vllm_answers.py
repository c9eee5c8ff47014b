"""Answers of `lorakit serve --engine vllm` before a stand-in that computes with the model and peft."""

from pathlib import Path

import openai
import pytest
from stand_in import VLLM_SPEC, rest, vllm_serving
from test_attacks import call

from lorakit.serving.vllm.exports import NOTHING

ASK = [{"role": "user", "content": "where is it?"}]
CHAT = "<|im_start|>user\nwhere is it?<|im_end|>\n<|im_start|>assistant\n"
MODELS = ["tiny-base", "small", "middle", "large"]


@pytest.fixture(scope="module")
def computing(house, tmp_path_factory):
    """A server before a stand-in that computes with the model and peft, with vLLM's fault."""
    record = tmp_path_factory.mktemp("computing") / "told.jsonl"
    with vllm_serving(house, record, model=True, given=("step_tokens",)) as made:
        yield made


@pytest.fixture(scope="module")
def client(computing):
    url = f"{computing[0].url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def test_vllm_was_started_with_what_was_asked_for(computing):
    running, told = computing
    (start,) = told.of("start")
    assert start["served_model_name"] == "tiny-base"
    assert start["max_loras"] == VLLM_SPEC.slots + 1
    assert start["max_lora_rank"] == 32  # the widest adapter of the store; its slots have 8
    assert start["max_model_len"] == 360
    assert start["max_num_batched_tokens"] == VLLM_SPEC.step_tokens
    assert start["kv_cache_memory_bytes"] == 20_000_000
    assert start["generation_config"] == "vllm"
    assert start["variables"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert len(start["variables"]["VLLM_API_KEY"]) >= 32
    assert "because an adapter that is there needs it" in " ".join(running.ready.notes)
    assert Path(start["uds"]).parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("model", MODELS)
def test_a_greedy_chat_is_the_adapters_own_answer_and_the_bases_is_the_bases(client, alone, model):
    """The stand-in answers for the base's own name with the adapter that came last."""
    for name in ("small", model):
        got = client.chat.completions.create(model=name, messages=ASK, temperature=0, max_tokens=12)
        assert got.choices[0].message.content == alone(name, CHAT, 12)
    streamed = client.chat.completions.create(
        model=model,
        messages=ASK,
        temperature=0,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(streamed)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == alone(model, CHAT, 12)
    assert chunks[-1].usage.completion_tokens == got.usage.completion_tokens
    assert got.usage.prompt_tokens == len(CHAT) - 2 * len("<|im_start|>") - len("<|im_end|>") + 3


def test_requests_for_the_base_go_to_the_adapter_that_changes_nothing(computing, client):
    client.completions.create(model="tiny-base", prompt="hello", max_tokens=2)
    asked = computing[1].of("/v1/completions")
    assert asked[-1]["model"] == NOTHING
    assert "tiny-base" not in {one["model"] for one in asked}


def test_a_reported_cache_is_told(client):
    long = {"model": "middle", "prompt": "a beginning that is shared", "max_tokens": 2}
    client.completions.create(**long)
    again = client.completions.create(**long)
    assert again.usage.prompt_tokens_details.cached_tokens == 16


def test_stops_and_choices_and_log_probabilities(client, alone):
    whole = alone("middle", CHAT, 12)
    asked = {"model": "middle", "messages": ASK, "temperature": 0, "max_tokens": 12}
    got = client.chat.completions.create(**asked, stop=[whole[4:6]], n=2)
    assert [c.message.content for c in got.choices] == [whole[: whole.index(whole[4:6])]] * 2
    assert {c.finish_reason for c in got.choices} == {"stop"}
    told = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    for token in told.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob
    old = client.completions.create(
        model="middle", prompt=["once", "twice"], temperature=0, max_tokens=6
    )
    assert [c.text for c in old.choices] == [alone("middle", p, 6) for p in ("once", "twice")]


def test_figures_and_status_are_those_of_the_answers(computing, client):
    client.completions.create(model="small", prompt="hello", max_tokens=3, temperature=0)
    url = computing[0].url
    rest(computing[0])
    text = call(f"{url}/metrics")[2]
    assert 'lorakit_completion_tokens_total{model="small"}' in text
    assert 'lorakit_time_to_first_token_seconds_count{model="small"}' in text
    status = call(f"{url}/v1/lorakit/status")[2]
    assert status["running"] == status["waiting"] == 0
    assert 1 <= status["resident_adapters"] <= VLLM_SPEC.slots
    assert status["tokens_per_second"] > 0
    assert call(f"{url}/health")[0] == 200
