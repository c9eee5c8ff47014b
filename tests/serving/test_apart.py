"""What goes wrong with one request ends that request alone; the others' tokens are those of alone."""

import json
import threading
from typing import ClassVar

import openai
import pytest
import torch
from engines import Driven
from servers import serving
from test_attacks import call

from families import tiny, tokenizer
from lorakit.errors import DataError, ModelError
from lorakit.execution.generate import generate
from lorakit.execution.prompts import check_prompts
from lorakit.execution.streaming import stream
from lorakit.models import ModelSpec
from lorakit.serving.answers import Prompt
from lorakit.serving.bank import StagedAdapter
from lorakit.serving.sampling import Sampling
from lorakit.serving.talk import Talk

OTHERS = {"one": [20, 21, 22], "two": [30, 31, 32, 33, 34], "three": [40]}


class BrokenMatcher:
    """A grammar's library that fails after some tokens."""

    complete = False
    spec: ClassVar[dict] = {}

    def __init__(self, after=0, where="allowed", error=RuntimeError):
        self.left, self.where, self.error = after, where, error

    def start(self):
        return self

    def allowed(self, size):
        if self.where == "allowed" and self.left == 0:
            raise self.error("the library failed")
        return torch.ones(size, dtype=torch.bool)

    def take(self, id):
        if self.where == "take" and self.left == 0:
            raise self.error("the library failed")
        self.left -= 1


class BrokenRandom:
    def random(self):
        raise ValueError("no number")


def bad(name):
    """A prompt that makes something inside of a step fail."""
    usual = {"ids": [50, 51], "key": "", "load": None, "name": "base", "most": 8}
    sampling = {
        "a matcher that fails": Sampling(0.0, grammar=BrokenMatcher()),
        "one that fails later": Sampling(0.0, grammar=BrokenMatcher(2)),
        "one that refuses a token": Sampling(0.0, grammar=BrokenMatcher(1, "take")),
        "a bias beyond the vocabulary": Sampling(0.0, logit_bias=((100_000, 1.0),)),
        "nothing left": Sampling(0.0, allowed_ids=(7,), bad_ids=((7,),)),
        "not a number": Sampling(1.0, logit_bias=((5, float("nan")),)),
    }
    ids = {
        "no such embedding": [50, 299, 300],
        "far beyond": [10**6],
        "negative": [50, -1000],
    }
    if name in ids:
        usual["ids"] = ids[name]
    return Prompt(**usual, ends=frozenset({1}), sampling=sampling.get(name, Sampling(0.0)))


KINDS = [
    *("a matcher that fails", "one that fails later", "one that refuses a token"),
    *("a bias beyond the vocabulary", "nothing left", "not a number"),
    *("no such embedding", "far beyond", "negative", "no generator", "no text"),
]


@pytest.fixture(scope="module")
def engine():
    return Driven("llama")


@pytest.fixture(scope="module")
def alone(engine):
    return {name: engine.alone(ids, most=8).ids for name, ids in OTHERS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_fails_inside_a_step_ends_alone(engine, alone, kind, monkeypatch):
    for known in ("", *engine.folders):
        engine.cache.forget(known)
    for tag in ("one", "two"):
        engine.ask(tag, OTHERS[tag], most=8)
    engine.step()
    engine.submit([bad(kind)], "bad")
    if kind in ("no generator", "no text"):
        engine._inbox.get()()
        (answer,) = (a for a in engine._answers.values() if a.tag == "bad")
        if kind == "no generator":
            answer.prompt.sampling.__dict__["temperature"] = 1.0
            answer.generator = BrokenRandom()
        else:
            answer.text.feed = BrokenRandom().random
    engine.ask("three", OTHERS["three"], most=8)
    engine.settle()
    for tag in OTHERS:
        answer = engine.answers.pop((tag, 0))
        assert answer.ids == alone[tag], tag
        assert answer.finish in ("stop", "length")
    failed = engine.answers.pop(("bad", 0))
    assert failed.finish in ("error", "refused"), kind
    assert failed.text
    assert engine.load[0] == 0
    assert engine.cache.busy == 0


def test_an_adapter_that_cannot_be_installed_ends_its_own_answers(alone):
    engine = Driven("llama")
    engine.forward.bank.install = BrokenRandom.random  # takes no such arguments: fails
    engine.ask("one", OTHERS["one"], most=8)
    staged = StagedAdapter(1, engine.forward.bank.groups)
    prompt = Prompt([5, 6], "key", lambda: staged, "bad", 8, frozenset({1}))
    engine.submit([prompt], "bad")
    engine.settle()
    assert engine.answers[("one", 0)].ids == alone["one"]
    assert engine.answers[("bad", 0)].finish == "error"
    assert engine.pool.resident == ()


# --- a tokenizer that knows more than the model


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A base with fewer embeddings than its tokenizer has tokens."""
    root = tmp_path_factory.mktemp("short")
    made = tokenizer()
    made.add_tokens([f"<extra_{i}>" for i in range(60)])
    tiny("llama").save_pretrained(root / "base")
    made.save_pretrained(root / "base")
    patch = pytest.MonkeyPatch()
    patch.setenv("LORAKIT_CACHE", str(root / "cache"))
    with serving(root / "base", root / "store") as server:
        yield server, made, root / "base"
    patch.undo()


def test_a_token_without_an_embedding_is_a_400_for_that_request_alone(short):
    server, made, _ = short
    id = made.convert_tokens_to_ids("<extra_59>")
    assert id >= 300
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        usual = {
            "model": "base",
            "temperature": 0,
            "max_tokens": 40,
            "extra_body": {"ignore_eos": True},
        }
        before = client.completions.create(prompt="once upon", **usual).choices[0].text
        got = []

        def ask():
            got.append(client.completions.create(prompt="once upon", **usual).choices[0].text)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(4):
            for prompt in ("a <extra_59> b", [5, id], ["fine", "<extra_59>"]):
                with pytest.raises(openai.BadRequestError, match=rf"{id} \('<extra_59>'\)"):
                    client.completions.create(model="base", prompt=prompt, max_tokens=2)
            with pytest.raises(openai.BadRequestError, match="embeddings for 300 tokens"):
                client.chat.completions.create(
                    model="base", messages=[{"role": "user", "content": "say <extra_59>"}]
                )
        for thread in threads:
            thread.join()
        assert got == [before] * 4
        for body in (
            {"logit_bias": {str(id): 5}},
            {"stop_token_ids": [id]},
            {"allowed_token_ids": [id]},
            {"bad_words": ["<extra_59>"]},
        ):
            with pytest.raises(openai.BadRequestError, match=f"{id} .'<extra_59>'"):
                client.completions.create(model="base", prompt="x", extra_body=body)
    server.rest()


def test_generate_says_it_before_it_begins(short):
    _, made, _ = short
    model, id = tiny("llama"), made.convert_tokens_to_ids("<extra_59>")
    for begin in (
        lambda: generate(model, made, [[5], [6, id]], max_new_tokens=2),
        lambda: stream(model, made, [id], max_new_tokens=2),
        lambda: check_prompts(model, [[id]], 1, made),
    ):
        with pytest.raises(ModelError, match=rf"{id} \('<extra_59>'\)"):
            begin()


def test_talk_says_it(short, tmp_path):
    talk = Talk(ModelSpec(str(short[2]), dtype="float32"), ["base"], store=tmp_path, most=4)
    try:
        with pytest.raises(DataError, match="<extra_59>"):
            list(talk.ask("say <extra_59>", Sampling(0.0)))
    finally:
        talk.close()


# --- templates are programs


BROKEN = (
    "{% for m in messages %}{% if 'recurse' in m.content %}"
    "{{ m.content.no_such_thing.at_all }}{% endif %}"
    "{% if 'divide' in m.content %}{{ 1 // 0 }}{% endif %}"
    "{% if 'raise' in m.content %}{{ raise_exception('not like this') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


def test_a_template_that_fails_is_a_400_that_says_how(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    made = tokenizer()
    made.chat_template = BROKEN
    tiny("llama").save_pretrained(tmp_path / "base")
    made.save_pretrained(tmp_path / "base")
    with serving(tmp_path / "base", tmp_path / "store") as server:
        for word, said in (("recurse", "no_such_thing"), ("divide", "zero"), ("raise", "not like")):
            body = {"model": "base", "messages": [{"role": "user", "content": word}]}
            status, _, got = call(f"{server.url}/v1/chat/completions", body)
            assert status == 400, json.dumps(got)
            assert said in got["error"]["message"]
        body["messages"][0]["content"] = "fine"
        assert call(f"{server.url}/v1/chat/completions", {**body, "max_tokens": 2})[0] == 200
