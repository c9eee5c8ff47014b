"""A recorded prompt template is applied by the server, the page, chat and generate, token for token."""

import io
import json
import sys
import urllib.error
import urllib.request

import pytest
from servers import SPEC, saved_base, serving

import lorakit
from lorakit.adapters.store import Store
from lorakit.cli.main import run
from lorakit.data import DataSpec, Row, encode_prompt, recognise, resolve_template
from lorakit.models import ModelSpec, load_tokenizer
from lorakit.run.notebook.given import config_of
from lorakit.serving.sampling import Sampling
from lorakit.serving.talk import Talk

LINES = {"prompt": r"Q: {text}\n", "completion": "{label}"}
PEOPLE = {"prompt": "{name} lives in {city.name}.\n", "completion": "{label}"}
ROWS = [
    {"text": f"where is parcel {n}", "label": "track", "name": "Ann", "city": {"name": f"B{n}"}}
    for n in range(4)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("asked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAKIT_CACHE", str(root / "cache"))
        saved_base(root / "tiny-base")
        made = {"lines": LINES, "people": PEOPLE, "raw": {**LINES, "template": "raw"}}
        for name, options in made.items():
            model, words = lorakit.load_model(str(root / "tiny-base"))
            lorakit.attach(model, lorakit.LoraSpec(rank=2))
            lorakit.train(model, words, ROWS, eval_share=0, max_steps=1, **options)
            lorakit.save_adapter(model, root / name)
            Store(root / "store").add(root / name, name)
        yield root


@pytest.fixture(autouse=True)
def own_cache(place, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(place / "cache"))
    monkeypatch.setenv("LORAKIT_STORE", str(place / "store"))


@pytest.fixture(scope="module")
def server(place):
    with serving(place / "tiny-base", place / "store", SPEC) as made:
        yield made


@pytest.fixture
def sent(server, monkeypatch):
    """Prompts as the engine gets them."""
    prompts, own = [], server.engine.submit

    def submit(choices, tag):
        prompts.extend(choice.ids for choice in choices)
        return own(choices, tag)

    monkeypatch.setattr(server.engine, "submit", submit)
    return prompts


def trained(place, options, row, messages=None):
    """The prompt of a row as training encodes it: an oracle that knows nothing of serving."""
    words = load_tokenizer(str(place / "tiny-base"))
    spec = DataSpec(**{"template": "auto", **options})
    shape = recognise(Row("f", 1, row), spec)
    example = shape.example(Row("f", 1, row))
    return encode_prompt(example, words, resolve_template(spec, words, shape=shape)).tolist()


def post(server, path, **body):
    body = {"max_tokens": 2, "temperature": 0, **body}
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]


def chat(server, model, *texts, **body):
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
    ]
    return post(server, "/v1/chat/completions", model=model, messages=messages, **body)


def test_one_column_is_the_typed_text(server, place, sent):
    assert chat(server, "lines", "where is parcel 9")[0] == 200
    assert sent == [trained(place, LINES, {**ROWS[0], "text": "where is parcel 9"})]
    assert chat(server, "lines", "x", prompt_template=False)[0] == 200
    words = load_tokenizer(str(place / "tiny-base"))
    assert "Q: " not in words.decode(sent[1])


def test_several_columns_are_a_json_object(server, place, sent):
    asked = {"city": {"name": "Bonn"}, "name": "Eva"}
    assert chat(server, "people", json.dumps(asked))[0] == 200
    flat = {"city.name": "Bonn", "name": "Eva"}
    assert chat(server, "people", json.dumps(flat))[0] == 200
    assert sent == [trained(place, PEOPLE, {**ROWS[0], **asked})] * 2
    code, said = chat(server, "people", "Eva in Bonn")
    assert code == 400
    assert "'name', 'city.name'" in said
    assert '"prompt_template" to false' in said
    code, said = chat(server, "people", json.dumps({"name": "Eva"}))
    assert code == 400
    assert "'city.name' is missing" in said
    assert len(sent) == 2


def test_every_user_message_of_a_conversation(server, place, sent):
    chat(server, "lines", "one", "track", "two")
    words = load_tokenizer(str(place / "tiny-base"))
    text = words.decode(sent[0])
    assert text.index("Q: one\n") < text.index("track") < text.index("Q: two\n")


def test_a_text_completion_is_mapped_where_no_chat_template_was_trained(server, place, sent):
    words = load_tokenizer(str(place / "tiny-base"))
    ask = lambda model, **body: post(server, "/v1/completions", model=model, prompt="a b", **body)  # noqa: E731
    assert ask("raw")[0] == ask("raw", prompt_template=False)[0] == ask("lines")[0] == 200
    mapped = trained(place, {**LINES, "template": "raw"}, {**ROWS[0], "text": "a b"})
    assert sent == [mapped, *[words("a b")["input_ids"]] * 2]
    assert chat(server, "raw", "a b")[0] == 200
    assert sent[-1] == mapped
    code, said = ask("lines", prompt_template=True)
    assert code == 400
    assert "/v1/chat/completions" in said
    code, said = ask("tiny-base", prompt_template=True)
    assert (code, "recorded none" in said) == (400, True)


def test_the_models_record_says_what_is_done(server):
    with urllib.request.urlopen(server.url + "/v1/models") as answer:
        listed = {one["id"]: one["lorakit"]["prompt"] for one in json.load(answer)["data"]}
    chats, both = ["/v1/chat/completions"], ["/v1/chat/completions", "/v1/completions"]
    assert listed == {
        "tiny-base": None,
        "lines": {"template": "Q: {text}\n", "columns": ["text"], "endpoints": chats},
        "raw": {"template": "Q: {text}\n", "columns": ["text"], "endpoints": both},
        "people": {
            "template": "{name} lives in {city.name}.\n",
            "columns": ["name", "city.name"],
            "endpoints": chats,
        },
    }


def test_several_adapters_in_one_chat(place, monkeypatch):
    talk = Talk(ModelSpec(str(place / "tiny-base")), ["lines", "raw", "base"], most=2)
    prompts, own = [], talk._engine.submit
    monkeypatch.setattr(
        talk._engine, "submit", lambda some, tag: prompts.append(some[0].ids) or own(some, tag)
    )
    try:
        list(talk.ask("hello", Sampling(temperature=0.0)))
    finally:
        talk.close()
    row = {**ROWS[0], "text": "hello"}
    assert prompts[0] == trained(place, LINES, row)
    assert prompts[1] == trained(place, {**LINES, "template": "raw"}, row)
    assert prompts[2] != prompts[0]


@pytest.fixture
def written(monkeypatch):
    """Prompts as generate and chat stream them."""
    from lorakit.execution import streaming

    prompts = []
    monkeypatch.setattr(streaming, "stream", lambda m, t, ids, **_: prompts.append(ids) or ["ok"])
    return prompts


def test_generate_takes_a_text_columns_or_json(place, written, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["generate", "--adapter", "lines", "hello", "you"]) == 0
    rows = [{**ROWS[0], "text": text} for text in ("hello", "you")]
    assert written == [trained(place, LINES, row) for row in rows]
    person = trained(place, PEOPLE, {**ROWS[0], "name": "Eva", "city": {"name": "Bonn"}})
    ask = ["generate", "--adapter", "people"]
    assert run([*ask, "--set", "name=Eva", "--set", "city.name=Bonn"]) == 0
    assert run([*ask, '{"name": "Eva", "city": {"name": "Bonn"}}']) == 0
    assert written[2:] == [person, person]
    capfd.readouterr()
    assert run([*ask, "Eva"]) == 2
    said = capfd.readouterr().err
    assert "'name', 'city.name'" in said
    assert "--set" in said
    assert run([*ask, "--set", "name=Eva", "--set", "town=Bonn"]) == 2
    assert "has no column 'town'; known: 'city.name', 'name'" in capfd.readouterr().err
    assert run([*ask, "--set", "naem=Eva", "--set", "city.name=Bonn"]) == 2
    assert "has no column 'naem'; did you mean 'name'?" in capfd.readouterr().err
    assert run(["generate", "--adapter", "lines", "--no-prompt-template", "hello"]) == 0
    assert written[-1] == trained(place, {"prompt": "{text}", "completion": "x{label}"}, rows[0])


def test_chat_maps_each_message(place, written, capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n\n"))
    assert run(["chat", "--adapter", "lines"]) == 0
    assert "Q: {text}" in capfd.readouterr().out
    words = load_tokenizer(str(place / "tiny-base"))
    assert written[0] == trained(place, LINES, {**ROWS[0], "text": "one"})
    assert words.decode(written[1]).count("Q: ") == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO('Eva\n{"name": "E", "city.name": "B"}\n\n'))
    assert run(["chat", "--adapter", "people"]) == 0
    assert "JSON object" in capfd.readouterr().out
    row = {**ROWS[0], "name": "E", "city": {"name": "B"}}
    assert written[2:] == [trained(place, PEOPLE, row)]


def test_python_generates_as_trained(place, monkeypatch):
    from lorakit.run.notebook import generating

    prompts = []

    class Answer:
        text = "ok"

    monkeypatch.setattr(
        generating, "complete", lambda m, t, ids, **_: prompts.extend(ids) or [Answer()] * len(ids)
    )
    person = {"name": "Eva", "city": {"name": "Bonn"}}
    assert lorakit.generate(None, ["hello"], adapter="lines") == ["ok"]
    assert lorakit.generate(None, person, adapter="people") == "ok"
    model, words = lorakit.load_model(str(place / "tiny-base"))
    lorakit.load_adapter(model, place / "lines")
    lorakit.generate(model, "hello", tokenizer=words)
    lorakit.generate(model, "hello", tokenizer=words, prompt_template=False)
    hello = trained(place, LINES, {**ROWS[0], "text": "hello"})
    assert prompts[0] == prompts[2] == hello
    assert prompts[1] == trained(place, PEOPLE, {**ROWS[0], **person})
    assert prompts[3] != hello


def test_the_base_of_a_server_is_that_of_its_adapters(place):
    from lorakit.serving.base import base_to_serve

    given = config_of("serve", None, {}, ()).model
    base = str(place / "tiny-base")
    assert base_to_serve(given, (), place / "store").model == base
    assert base_to_serve(given, ["people"], place / "store").model == base
    assert base_to_serve(given, [place / "lines"], None).model == base
    assert base_to_serve(given, (), place / "nothing").model == given.model
