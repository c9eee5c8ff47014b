"""Answers that have to look like something: schemas, streams, mixed batches, ends, refusals."""

import json
import re
import threading
from dataclasses import replace

import jsonschema_rs
import openai
import pytest
from engines import Driven
from servers import SPEC, serving

from families import tiny, tokenizer
from lorakit.errors import ConfigError
from lorakit.serving.answers import Prompt
from lorakit.serving.grammar import Grammars
from lorakit.serving.sampling import Sampling

ENDS = frozenset({1, 4})
ASK = [{"role": "user", "content": "where is it?"}]


def thing(required=None, **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


SHORT = {"type": "string", "maxLength": 4}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
# Bounded, so that an untrained model comes to an end of them.
SCHEMAS = {
    "flat": thing(a=DIGIT, b={"type": "boolean"}),
    "enum": thing(kind={"enum": ["one", "two", None, 3]}),
    "const": {"const": {"a": [1, "x"]}},
    "strings": thing(name=SHORT, code={"type": "string", "pattern": "^[A-C]{2}[0-9]$"}),
    "nested": thing(at=thing(x=DIGIT, y=DIGIT), of=thing(name=SHORT)),
    "array": {"type": "array", "items": DIGIT, "minItems": 2, "maxItems": 4},
    "tuple": {
        "type": "array",
        "prefixItems": [DIGIT, SHORT],
        "items": False,
        "minItems": 2,
        "maxItems": 2,
    },
    "any of": {"anyOf": [thing(a=DIGIT), thing(b=SHORT), {"type": "null"}]},
    "references": {
        **thing(first={"$ref": "#/$defs/point"}, last={"$ref": "#/$defs/point"}),
        "$defs": {"point": thing(x=DIGIT)},
    },
    "not all": thing(required=["a"], a=DIGIT, b=DIGIT, c=SHORT),
    "date": thing(day={"type": "string", "format": "date"}),
    "numbers": thing(a={"type": "number", "enum": [0.5, 1, -2e3]}, b={"multipleOf": 5, **DIGIT}),
    "a union of types": thing(a={"type": ["boolean", "null"]}),
    "recursive": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": thing(
                required=["v"],
                v=DIGIT,
                next={"anyOf": [{"type": "null"}, {"const": {"v": 1}}]},
            )
        },
    },
}


def format_of(schema):
    return {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": schema}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("structured")
    tiny("llama", max_position_embeddings=2048).save_pretrained(root / "base")
    tokenizer().save_pretrained(root / "base")
    patch = pytest.MonkeyPatch()
    patch.setenv("LORAKIT_CACHE", str(root / "cache"))
    spec = replace(SPEC, max_output=900, cache_gb=0.1, max_queue=64)
    with serving(root / "base", root / "store", spec, max_choices=32) as made:
        yield made
    patch.undo()


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made
    server.rest()


def ask(client, schema, **more):
    asked = {"model": "base", "messages": ASK, "max_tokens": 800, "seed": 3, **more}
    return client.chat.completions.create(response_format=format_of(schema), **asked)


def check(text, schema):
    jsonschema_rs.validate(schema, json.loads(text))


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_parses_and_validates_greedy_and_drawn(client, name):
    schema = SCHEMAS[name]
    for more in ({"temperature": 0}, {"n": 4}, {"n": 2, "temperature": 2.0}):
        for choice in ask(client, schema, **more).choices:
            assert choice.finish_reason == "stop", choice
            check(choice.message.content, schema)


def test_streams_of_a_mixed_batch_are_the_answers_of_alone(client):
    alone = {
        n: ask(client, s, temperature=0).choices[0].message.content for n, s in SCHEMAS.items()
    }
    plain = {"model": "base", "prompt": "once", "temperature": 0, "max_tokens": 30}
    free = client.completions.create(**plain).choices[0].text
    got, said = {}, []

    def stream(name):
        chunks = ask(client, SCHEMAS[name], temperature=0, stream=True)
        got[name] = "".join(c.choices[0].delta.content or "" for c in chunks)

    def go_on():
        said.append(client.completions.create(**plain).choices[0].text)

    threads = [threading.Thread(target=stream, args=(name,)) for name in SCHEMAS]
    threads += [threading.Thread(target=go_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == alone
    assert said == [free] * 4


def test_max_tokens_and_stop_cut_an_answer_as_they_cut_any(client):
    schema = thing(a={"type": "string", "minLength": 30, "maxLength": 40})
    cut = ask(client, schema, max_tokens=7).choices[0]
    assert cut.finish_reason == "length"
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(cut.message.content)
    stopped = ask(client, schema, stop=['"a"']).choices[0]
    assert stopped.finish_reason == "stop"
    assert re.fullmatch(r"\{\s*", stopped.message.content)


def test_json_object_is_an_object(client):
    got = client.chat.completions.create(
        model="base",
        messages=ASK,
        response_format={"type": "json_object"},
        max_tokens=800,
        temperature=1.5,
        n=8,
        seed=0,
    )
    ended = [c for c in got.choices if c.finish_reason == "stop"]
    assert ended
    assert all(isinstance(json.loads(c.message.content), dict) for c in ended)
    text = client.chat.completions.create(
        model="base", messages=ASK, response_format={"type": "text"}, max_tokens=5, temperature=0
    )
    free = client.chat.completions.create(model="base", messages=ASK, max_tokens=5, temperature=0)
    assert text.choices[0].message.content == free.choices[0].message.content


@pytest.mark.parametrize(
    ("wish", "fits"),
    [
        ({"regex": "[ab]{3}-[0-9]+x"}, r"[ab]{3}-[0-9]+x"),
        ({"choice": ["yes", "no", 'it "depends"\n']}, r'yes|no|it "depends"\n'),
        ({"grammar": 'root ::= "a" | "b" root "c"'}, r"b*ac*"),
        ({"grammar": 'start: "x" NUMBER\nNUMBER: /[1-3]{2}/'}, r"x[1-3]{2}"),
        ({"json": json.dumps(thing(a=DIGIT))}, r'\{\s*"a"\s*:\s*\d\s*\}'),
    ],
)
def test_vllms_structured_outputs(client, wish, fits):
    for path in ("chat", "completions"):
        more = {"max_tokens": 300, "seed": 1, "extra_body": {"structured_outputs": wish}}
        if path == "chat":
            got = client.chat.completions.create(model="base", messages=ASK, n=3, **more)
            said = [(c.message.content, c.finish_reason) for c in got.choices]
        else:
            got = client.completions.create(model="base", prompt="x", n=3, **more)
            said = [(c.text, c.finish_reason) for c in got.choices]
        for text, finish in said:
            if finish == "stop":
                assert re.fullmatch(fits, text)
        assert any(finish == "stop" for _, finish in said)


def test_log_probabilities_are_of_what_the_schema_allows(client):
    got = ask(client, {"enum": ["abc", "xyz"]}, temperature=0, logprobs=True, top_logprobs=5)
    for token in got.choices[0].logprobs.content:
        assert token.logprob <= 0
        assert all(t.logprob >= -9999.0 for t in token.top_logprobs)
        assert sum(2.718281828459045**t.logprob for t in token.top_logprobs) == pytest.approx(
            1, abs=0.2
        )


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "object", "properties": {"a": {"type": "strin"}}}, "strin"),
        ({"$ref": "#/$defs/nowhere"}, "nowhere"),
        ({"type": "string", "pattern": "(?=x)y"}, "look-around"),
        ({"type": "array", "uniqueItems": True, "items": DIGIT}, "uniqueItems"),
        ({"type": "string", "format": "no-such"}, "no-such"),
        ({"if": {"type": "string"}, "then": {"minLength": 1}}, "if"),
    ],
)
def test_what_the_library_does_not_do_is_a_400_that_names_it(client, schema, said):
    with pytest.raises(openai.BadRequestError, match=said):
        ask(client, schema)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
        ({"structured_outputs": {"regex": "("}}, "regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "exactly one"),
        ({"structured_outputs": {}}, "exactly one"),
        ({"structured_outputs": {"grammar": "start: nothing"}}, "nothing"),
        ({"structured_outputs": {"json": "{"}}, "cannot be read"),
        ({"structured_outputs": {"jsn": {}}}, "did you mean 'json'"),
        ({"guided_json": {}}, "structured_outputs"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "one of response_format and structured_outputs",
        ),
    ],
)
def test_what_is_no_constraint_is_a_400(client, body, said):
    with pytest.raises(openai.BadRequestError, match=said):
        client.chat.completions.create(model="base", messages=ASK, extra_body=body)


def test_penalties_and_a_schema_at_once_keep_to_the_schema(client):
    schema = {"type": "array", "items": DIGIT, "minItems": 8, "maxItems": 8}
    more = {"frequency_penalty": 2.0, "presence_penalty": 2.0, "logit_bias": {"1": 100, "4": 100}}
    for choice in ask(client, schema, n=3, **more).choices:
        check(choice.message.content, schema)


def test_an_answer_ends_where_its_grammar_does_whatever_min_tokens_says():
    engine = Driven("llama")
    grammar = Grammars(engine.tokenizer, 300).compile("choice", ["abc"], ENDS)
    wish = Sampling(0.0, grammar=grammar, min_tokens=20)
    prompt = Prompt([5, 6], "", None, "base", 30, ENDS, (), wish)
    engine.submit([prompt], "it")
    engine.settle()
    answer = engine.answers["it", 0]
    assert (answer.text, answer.finish) == ("abc", "stop")


def test_a_grammar_is_compiled_for_the_tokens_that_end_an_answer():
    made = tokenizer()
    grammars = Grammars(made, 310)
    for ends in (ENDS, frozenset({4}), frozenset({1})):
        matcher = grammars.compile("regex", "a", ends).start()
        (id,) = matcher.allowed(310).nonzero()[:, 0].tolist()
        assert made.decode([id]) == "a"
        matcher.take(id)
        assert matcher.complete
        assert set(matcher.allowed(310).nonzero()[:, 0].tolist()) == ends
    with pytest.raises(ConfigError, match="invalid regex"):
        grammars.compile("regex", "(", ENDS)


def test_answers_of_one_grammar_do_not_share_their_state():
    grammar = Grammars(tokenizer(), 300).compile("choice", ["ab", "cd"], ENDS)
    one, other = grammar.start(), grammar.start()
    before = other.allowed(300)
    one.take(int(before.nonzero()[0, 0]))
    assert (other.allowed(300) == before).all()
    assert not (one.allowed(300) == before).all()
