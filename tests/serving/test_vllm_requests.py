"""Tools, penalties and schemas through `lorakit serve --engine vllm`, before the stand-in."""

import json

import openai
import pytest
from servers import fill_store
from stand_in import vllm_serving

from families import tiny, tokenizer
from tool_templates import TEMPLATES, TOOLS, TWO, add_marks

ASK = [{"role": "user", "content": "where is it?"}]
END = "\x01"  # the stand-in's tokens are bytes; this one ends an answer


def house(root, template):
    """A base whose template writes tool calls."""
    made = add_marks(tokenizer())
    made.chat_template = template
    model = tiny("llama", vocab_size=320, head_dim=16, max_position_embeddings=4096)
    model.save_pretrained(root / "tiny-base")
    made.save_pretrained(root / "tiny-base")
    fill_store(root / "store", root / "tiny-base", root / "scratch")
    return root


@pytest.fixture
def asked(tmp_path, monkeypatch, request):
    """A client of a server whose vLLM says one thing, and what vLLM was asked."""
    from dataclasses import replace

    from stand_in import VLLM_SPEC

    name, says = request.param
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    spec = replace(VLLM_SPEC, max_prompt=2000, max_output=400)
    place = house(tmp_path, TEMPLATES[name])
    with (
        vllm_serving(place, tmp_path / "told.jsonl", spec, model=False, says=says) as (
            server,
            told,
        ),
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client, told


def calls_of(client, **more):
    chat = client.chat.completions.create
    return chat(model="small", messages=ASK, tools=TOOLS, max_tokens=300, **more)


@pytest.mark.parametrize("asked", [("hermes", f"So: {TWO['hermes']}{END}")], indirect=True)
def test_calls_are_read_whole_and_streamed_and_wishes_go_on(asked):
    client, told = asked
    (choice,) = calls_of(client).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "So:"
    assert [c.function.name for c in choice.message.tool_calls] == ["find", "count"]
    arguments = ["", ""]
    for chunk in calls_of(client, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            arguments[call.index] += call.function.arguments
    assert [json.loads(text) for text in arguments] == [{"town": "Oslo"}, {"n": 2}]
    plain = client.completions.create(model="small", prompt="x", max_tokens=3)
    assert plain.choices[0].text == "So:"
    calls_of(client, tool_choice="required", frequency_penalty=1.0, logit_bias={"5": 7})
    *_, usual, last = told.of("/v1/completions")
    assert last["structured_outputs"]["grammar"].startswith("start: call")
    assert last["frequency_penalty"] == 1.0
    assert last["logit_bias"] == {"5": 7.0}
    assert not {"structured_outputs", "frequency_penalty", "logit_bias", "min_p"} & set(usual)
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        client.chat.completions.create(
            model="small",
            messages=ASK,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}},
            },
        )


@pytest.mark.parametrize("asked", [("mistral_named", f"hello{END}")], indirect=True)
def test_what_vllm_refuses_is_a_400_with_its_reason(asked):
    """Its grammars hold no special tokens where the tokenizer is not Mistral's own."""
    client, _ = asked
    with pytest.raises(openai.BadRequestError, match="vLLM refuses: Grammar error"):
        calls_of(client, tool_choice="required")
    assert calls_of(client).choices[0].message.content == "hello"
