"""What an adapter recorded of its base and its prompts is the default wherever it is used."""

import json
from dataclasses import replace

import pytest

import lorakit
from families import saved
from lorakit.adapters import read_adapter
from lorakit.config import load_config
from lorakit.data import PromptForm, Row, encode_prompt
from lorakit.errors import AdapterError, DataError
from lorakit.models import load_tokenizer
from lorakit.run.commands.training import prepare, run_training
from lorakit.run.recorded import prompt_form, recorded_mapping, with_recorded

ROWS = [{"text": f"where is parcel {n}", "intent": ("track", "return")[n % 2]} for n in range(12)]
PAIRS = [{"name": f"ann {n}", "city": "bonn", "answer": "yes"} for n in range(12)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("recorded")


@pytest.fixture(scope="module")
def base(place):
    return saved(place / "bases" / "own-base")


@pytest.fixture(autouse=True)
def own_store(place, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(place / "cache"))
    monkeypatch.setenv("LORAKIT_STORE", str(place / "store"))


def train(place, base, name, rows, **options):
    file = place / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(
        None,
        {"model": str(base), "data": (str(file),), "out": str(place / name), "rank": 2}
        | {"max_steps": 1, "samples": 0, "save_as": name, **options},
    )
    run_training(config)
    return config


@pytest.fixture(scope="module")
def adapters(place, base):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAKIT_CACHE", str(place / "cache"))
        patch.setenv("LORAKIT_STORE", str(place / "store"))
        mapping = {"prompt": r"{text}\n", "completion": "{intent}"}
        one = train(place, base, "intents", ROWS, system="Be brief.", **mapping)
        train(place, base, "people", PAIRS, prompt="{name} of {city}: ", completion="{answer}")
    return one


def test_base_and_mapping_come_from_the_record(adapters, base, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = with_recorded(load_config(None, {}), "intents")
    assert config.model.model == str(base)
    assert (config.data.prompt, config.data.completion) == (r"{text}\n", "{intent}")
    assert config.model.dtype == "auto"
    folder = with_recorded(load_config(None, {}), place / "people" / "adapter")
    assert (folder.model.model, folder.data.prompt) == (str(base), "{name} of {city}: ")


def test_what_the_user_gave_wins(adapters, base):
    given = {"model": "elsewhere", "prompt": "{q}", "completion": "{a}"}
    config = with_recorded(load_config(None, given), "intents")
    assert (config.model.model, config.data.prompt, config.data.completion) == (
        *("elsewhere", "{q}", "{a}"),
    )
    text = with_recorded(load_config(None, {"text": "{q}"}), "intents")
    assert (text.data.prompt, text.data.text, text.model.model) == (None, "{q}", str(base))


def test_the_first_of_several_decides_and_none_changes_nothing(adapters, base):
    config = with_recorded(load_config(None, {}), ["people", "intents"])
    assert config.data.prompt == "{name} of {city}: "
    assert with_recorded(load_config(None, {}), None) == load_config(None, {})


def test_a_base_that_is_gone_is_an_error_with_names_only_where_it_is_opened(
    adapters, place, base, monkeypatch
):
    away = base.rename(base.with_name("moved"))
    try:
        monkeypatch.chdir(place / "bases")
        with pytest.raises(AdapterError, match=r"intents@1 was trained on the base .*own-base"):
            with_recorded(load_config(None, {}), "intents")
        config = with_recorded(load_config(None, {}), "intents", base=False)
        assert config.model.model == "smollm2-135m"
    finally:
        away.rename(base)


def test_prompts_are_those_of_training_token_for_token(adapters, base, place):
    words = load_tokenizer(str(base))
    ready = prepare(adapters)
    row = ready.data.train[0]
    info = read_adapter(place / "intents" / "adapter")
    form, asked = prompt_form(info), ROWS[int(row.origin.rsplit(":", 1)[1]) - 1]
    template = ready.session.template
    for example in (
        form.typed(asked["text"]),
        form.filled({"text": asked["text"]}),
        form.row(Row("new.csv", 2, {"id": 7, "text": asked["text"]})),
    ):
        ids = encode_prompt(example, words, template).tolist()
        assert row.ids[: len(ids)].tolist() == ids
        assert asked["text"] + "\n<|im_end|>" in words.decode(ids)


def test_several_columns_are_asked_for(adapters, place):
    form = prompt_form(read_adapter(place / "people" / "adapter"))
    assert form.columns == ("name", "city")
    assert form.typed('{"city": "Rome", "name": "Eva"}').prompt == "Eva of Rome: "
    with pytest.raises(DataError, match=r"columns 'name', 'city'.*JSON object"):
        form.typed("Eva")
    with pytest.raises(DataError, match=r"column 'city' is missing"):
        form.filled({"name": "Eva"})
    with pytest.raises(DataError, match=r"no column 'town'; did you mean|no column 'town'"):
        form.filled({"name": "Eva", "city": "Rome", "town": "x"})


def test_an_older_record_is_read_from_its_configuration(adapters, place):
    info = read_adapter(place / "intents" / "adapter")
    provenance = {k: v for k, v in info.provenance.items() if k != "asking"}
    provenance["config"] = provenance["config"] | {"prompt": "a\\nb {text}\n"}
    older = replace(info, provenance=provenance)
    assert PromptForm(recorded_mapping(older)["prompt"]).typed("x").prompt == "a\\nb x\n"


def test_rows_without_answers_are_read_by_their_columns():
    form = PromptForm()

    def read(**fields):
        return form.row(Row("rows.jsonl", 1, fields))

    assert read(prompt="Hi", id=1).prompt == "Hi"
    assert read(prompt="Hi", completion="Hello").prompt == "Hi"
    assert read(instruction="Add", input="1, 2").prompt == "Add\n\n1, 2"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    asked = read(messages=[*turns, {"role": "user", "content": "c"}]).messages
    assert [m["content"] for m in asked] == ["a", "b", "c", ""]
    assert read(messages=turns).messages[-1]["content"] == "b"
    with pytest.raises(DataError, match=r"--prompt '\{question\}'"):
        read(question="Why?", id=3)


def test_a_foreign_adapter_names_its_base(place, base):
    model, _ = lorakit.load_model(str(base))
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    folder = lorakit.save_adapter(model, place / "foreign")
    (folder / "lorakit.json").unlink()
    file = folder / "adapter_config.json"
    content = json.loads(file.read_text())

    def named(name):
        file.write_text(json.dumps(content | {"base_model_name_or_path": name}))
        return with_recorded(load_config(None, {}), folder).model.model

    assert named(str(base)) == str(base)
    assert named("HuggingFaceTB/SmolLM2-135M-Instruct") == "smollm2-135m"
    assert named(None) == "smollm2-135m"
    with pytest.raises(AdapterError, match="nobody/knows-this"):
        named("nobody/knows-this")


def test_a_run_that_goes_on_reads_rows_and_opens_the_base_as_its_parent(adapters, base, place):
    def go_on(name, rows, **options):
        file = place / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        flags = {"from": "intents", "data": (str(file),), "out": str(place / name)}
        return prepare(load_config(None, {**flags, "max_steps": 1, **options}))

    ready = go_on("more", ROWS)
    assert ready.config.model.model == str(base)
    assert (ready.config.data.prompt, ready.config.data.completion) == (r"{text}\n", "{intent}")
    assert ready.session.template.system == "Be brief."
    with pytest.raises(DataError, match=r"no column 'text'.*intents@1 was trained with"):
        go_on("others", [{"prompt": "a", "completion": "b"}] * 4)
    own = go_on("own", PAIRS, prompt="{name}", completion="{answer}")
    assert own.config.data.prompt == "{name}"


def test_python_goes_on_as_its_parent_was_asked(adapters, base, place, tmp_path):
    """Mapping, system text and template of what was loaded, as `--from` takes them."""
    model, tokenizer = lorakit.load_model(str(base))
    lorakit.load_adapter(model, place / "intents" / "adapter", trainable=True)
    with pytest.raises(DataError, match=r"no column 'text'.*the adapter was trained with"):
        lorakit.train(model, tokenizer, [{"prompt": "a", "completion": "b"}], max_steps=1)
    lorakit.train(model, tokenizer, ROWS, max_steps=1, learning_rate=1e-3)
    before = read_adapter(place / "intents" / "adapter")
    after = read_adapter(lorakit.save_adapter(model, tmp_path / "one"))
    assert after.provenance["template"] == before.provenance["template"]
    assert after.provenance["template"]["system"] == "Be brief."
    assert recorded_mapping(after) == recorded_mapping(before)
    # What is given wins, and is what the next run goes on with.
    lorakit.train(
        model,
        tokenizer,
        PAIRS,
        prompt="{name}",
        completion="{answer}",
        system="Be long.",
        max_steps=1,
        learning_rate=1e-3,
    )
    lorakit.train(model, tokenizer, PAIRS, max_steps=1, learning_rate=1e-3)
    after = read_adapter(lorakit.save_adapter(model, tmp_path / "two"))
    assert recorded_mapping(after) == {"prompt": "{name}", "completion": "{answer}"}
    assert after.provenance["template"]["system"] == "Be long."


def test_python_goes_on_with_a_raw_template(base, place, tmp_path):
    model, tokenizer = lorakit.load_model(str(base))
    rows = [{"prompt": f"say {n}: ", "completion": str(n)} for n in range(8)]
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    lorakit.train(model, tokenizer, rows, template="raw", max_steps=2)
    lorakit.train(model, tokenizer, rows, max_steps=1, learning_rate=1e-3)
    after = read_adapter(lorakit.save_adapter(model, tmp_path / "raw"))
    assert after.provenance["template"]["kind"] == "raw"
