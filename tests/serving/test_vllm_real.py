"""vLLM itself, where it is: LORAKIT_VLLM names its environment (or this environment has it).

LORAKIT_VLLM=/path/to/env pytest -m readers tests/serving/test_vllm_real.py
"""

import importlib.util
import os
import threading

import openai
import pytest
import torch
from servers import serving
from stand_in import ended

from lorakit.adapters.save import save_adapter
from lorakit.adapters.store import Store
from lorakit.lora import LoraSpec, attach, detach, lora_layers
from lorakit.models import ModelSpec, identify, load_model
from lorakit.serving.spec import EngineSpec, RuntimeSpec
from lorakit.serving.vllm.exports import NOTHING

WHERE = os.environ.get("LORAKIT_VLLM")
pytestmark = [
    pytest.mark.readers,
    pytest.mark.smol,
    pytest.mark.skipif(
        WHERE is None and importlib.util.find_spec("vllm") is None,
        reason="needs vLLM: LORAKIT_VLLM=ENVIRONMENT",
    ),
]
BASE = "smollm2-135m"
RANKS = {"small": 4, "middle": 8, "wide": 32}
PROMPTS = ["The capital of France is", "Once upon a time", "def add(a, b):", "Q: What is 2+2? A:"]
SPEC = EngineSpec(slots=3, cache_gb=1.0, max_running=16, max_prompt=512, max_output=64)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Adapters that change every answer, of three ranks, one of them with ranks of its own."""
    root = tmp_path_factory.mktemp("adapters")
    made, identity = Store(root / "store"), identify(ModelSpec(BASE))
    model, _ = load_model(BASE, dtype="float32")
    for name, rank in RANKS.items():
        pattern = {"v_proj": 3} if name == "middle" else {}
        attach(model, LoraSpec(rank=rank, alpha=2.0 * rank, rank_pattern=pattern))
        generator = torch.Generator().manual_seed(rank)
        for layer in lora_layers(model).values():
            layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) * 0.25 / rank**0.5)
        save_adapter(model, root / name, identity=identity)
        detach(model)
        made.add(root / name, name)
    return made


@pytest.fixture(scope="module")
def server(store):
    runtime = RuntimeSpec(engine="vllm", vllm=WHERE)
    with serving(BASE, store.path, SPEC, runtime=runtime, given=("cache_gb",)) as running:
        yield running
        pid = running.engine.child._leader
    assert ended(pid)


@pytest.fixture(scope="module")
def client(server):
    url = f"{server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300) as made:
        yield made


@pytest.fixture(scope="module")
def alone(client):
    """Each request with vLLM to itself."""
    return {(m, p): say(client, m, p) for m in (BASE, *RANKS) for p in PROMPTS}


def say(client, model, prompt):
    made = client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=16)
    return made.choices[0].text


def test_answers_are_those_of_transformers_with_the_same_adapter(store, alone):
    """In float32, greedy: near ties apart, to the character."""
    from lorakit.adapters.load import load_adapter
    from lorakit.execution.generate import generate

    same = 0
    for name in (BASE, *RANKS):
        model, tokenizer = load_model(BASE, dtype="float32")
        if name != BASE:
            load_adapter(model, store.resolve(name).folder)
        ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
        answers = generate(model, tokenizer, ids, max_new_tokens=16)
        same += sum(a.text == alone[name, p] for a, p in zip(answers, PROMPTS, strict=True))
    print(f"{same} of {len(alone)} answers are the same")
    assert same >= len(alone) - 1
    for name in RANKS:  # each changes something, or equal answers would say little
        assert sum(alone[name, p] != alone[BASE, p] for p in PROMPTS) >= 2


def at_once(asks):
    """What functions of no argument give, all begun together."""
    got = {}
    threads = [
        threading.Thread(target=lambda name=name, do=do: got.update({name: do()}))
        for name, do in asks.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


def test_a_mixed_batch_is_each_request_alone_the_bases_rows_among_them(client, alone):
    asks = {asked: (lambda asked=asked: say(client, *asked)) for asked in alone}
    assert at_once(asks) == alone


def test_the_probe_says_what_vllm_does_to_the_bases_rows(server, client, alone):
    """Past lorakit, by the base's own name, in one batch with adapters that fill every slot."""

    def direct(prompt):
        body = {"model": BASE, "prompt": prompt, "temperature": 0, "max_tokens": 16}
        with server.engine.child.client() as line:
            return line.post("/v1/completions", json=body).json()["choices"][0]["text"]

    by_itself = {prompt: direct(prompt) for prompt in PROMPTS}
    assert by_itself == {prompt: alone[BASE, prompt] for prompt in PROMPTS}
    asks = {prompt: (lambda prompt=prompt: direct(prompt)) for prompt in PROMPTS}
    asks |= {
        (name, prompt): (lambda asked=(name, prompt): say(client, *asked))
        for name in RANKS
        for prompt in PROMPTS
    }
    got = at_once(asks)
    mixed = {prompt: got[prompt] for prompt in PROMPTS}
    same = sum(mixed[prompt] == by_itself[prompt] for prompt in PROMPTS)
    print(f"{same} of {len(PROMPTS)} answers of the base by name are its own in a mixed batch")
    assert (mixed == by_itself) == (server.engine.base != NOTHING)


def test_the_base_gets_its_own_answers_by_what_vllm_needs(server):
    """Whichever it is: by its name where rows stay apart, else by the adapter of zeros."""
    said = " ".join(server.ready.notes)
    assert (server.engine.base == NOTHING) == ("adapter that changes nothing" in said)


def test_streams_stops_and_log_probabilities(client, alone):
    asked = {"model": "small", "prompt": PROMPTS[1], "temperature": 0, "max_tokens": 16}
    whole = alone["small", PROMPTS[1]]
    streamed = client.completions.create(**asked, stream=True)
    assert "".join(c.choices[0].text for c in streamed if c.choices) == whole
    stop = whole[5:8]
    cut = client.completions.create(**asked, stop=[stop])
    assert cut.choices[0].text == whole[: whole.index(stop)]
    told = client.completions.create(**asked, logprobs=3).choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs)
    assert all(len(top) == 3 for top in told.top_logprobs)
    assert all(
        own == pytest.approx(max(top.values()))
        for own, top in zip(told.token_logprobs, told.top_logprobs, strict=True)
    )


def test_a_seed_repeats_and_choices_differ(client):
    asked = {"model": "wide", "prompt": PROMPTS[0], "seed": 7, "temperature": 1.0, "n": 3}
    first = client.completions.create(**asked, max_tokens=12)
    again = client.completions.create(**asked, max_tokens=12)
    said = [c.text for c in first.choices]
    assert said == [c.text for c in again.choices]
    assert len(set(said)) == 3
