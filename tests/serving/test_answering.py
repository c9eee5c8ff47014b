"""`lorakit generate --data`: every column is kept, answers are those of single prompts, kills cost nothing."""

import csv
import io
import json
import math
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

import lorakit
from families import saved
from lorakit.data import Example, encode_prompt
from lorakit.errors import ConfigError, DataError, LorakitError, OutputError
from lorakit.execution.generate import end_tokens, generate
from lorakit.serving.answering import by_engine, kept, opening
from lorakit.serving.answering import command as answering

SHORT = {"max_new_tokens": 5}
WORDS = ("lamp", "desk", "river", "stone", "cloud", "paper", "window", "garden")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LORAKIT_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    model, _ = lorakit.load_model(str(base))
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    generator = torch.Generator().manual_seed(0)
    for layer in lorakit.lora_layers(model).values():
        layer.B.data = torch.randn(layer.B.shape, generator=generator) * 0.05
    return lorakit.save_adapter(model, tmp_path_factory.mktemp("adapters") / "adapter")


def rows_of(count, seed=0):
    """Prompts of many lengths, so that batches of them are mixed."""
    draw = random.Random(seed)
    return [
        {"id": i, "prompt": " ".join(draw.choices(WORDS, k=draw.randrange(1, 20)))}
        for i in range(count)
    ]


def written(rows, name="rows.jsonl"):
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return name


def content(name):
    return Path(name).read_bytes()


def lines(name):
    return [json.loads(line) for line in content(name).decode().splitlines()]


def table_in(name, delimiter=","):
    text = io.StringIO(content(name).decode(), newline="")
    return list(csv.DictReader(text, delimiter=delimiter))


def alone(base, text, adapter=None):
    """The answer to one prompt and its probability, from the model's own forward, token by token."""
    model, tokenizer = lorakit.load_model(str(base))
    if adapter is not None:
        lorakit.load_adapter(model, adapter)
    template = lorakit.data.resolve_template(lorakit.DataSpec(), tokenizer)
    ids = encode_prompt(Example("x", prompt=text), tokenizer, template).tolist()
    ends, made, logp = end_tokens(model, tokenizer, template), [], 0.0
    with torch.no_grad():
        while len(made) < SHORT["max_new_tokens"]:
            log_p = torch.log_softmax(model(torch.tensor([ids + made])).logits[0, -1].double(), -1)
            token = int(log_p.argmax())
            logp += float(log_p[token])
            if token in ends:
                break
            made.append(token)
    return tokenizer.decode(made, skip_special_tokens=True).strip(), math.exp(logp)


@pytest.mark.parametrize("with_adapter", [False, True])
def test_answers_are_those_of_the_model_itself_to_each_prompt_alone(base, adapted, with_adapter):
    rows, adapter = rows_of(9), adapted if with_adapter else None
    made = lorakit.generate(base, data=rows, out="a.jsonl", adapter=adapter, **SHORT)
    assert made.rows == len(rows)
    assert made.errors == made.resumed == 0
    for row, line in zip(rows, lines("a.jsonl"), strict=True):
        text, probability = alone(base, row["prompt"], adapter)
        assert line.pop("answer") == text
        assert line.pop("answer_probability") == pytest.approx(probability, rel=1e-3)
        assert line == row


def test_what_cannot_be_served_is_answered_in_batches(base, adapted, monkeypatch):
    """The same answers, the other way; and those of a model that the caller holds."""
    rows = rows_of(40)
    lorakit.generate(base, data=rows, out="engine.jsonl", adapter=adapted, **SHORT)
    model, tokenizer = lorakit.load_model(str(base))
    lorakit.load_adapter(model, adapted)
    lorakit.generate(model, data=rows, out="held.jsonl", tokenizer=tokenizer, **SHORT)

    def refuse(*_, **__):
        raise lorakit.errors.ModelError("it cannot be served")

    monkeypatch.setattr(opening, "EngineAnswerer", refuse)
    lorakit.generate(base, data=rows, out="batches.jsonl", adapter=adapted, **SHORT)
    first = lines("engine.jsonl")
    for name in ("held.jsonl", "batches.jsonl"):
        for one, other in zip(first, lines(name), strict=True):
            assert other["answer"] == one["answer"]
            assert other["answer_probability"] == pytest.approx(one["answer_probability"], rel=1e-3)


def killed_after(monkeypatch, windows):
    """Answering stops like a kill when so many windows are kept."""
    real, seen = kept.append, []

    def append(journal, first, answers):
        if len(seen) == windows:
            raise KeyboardInterrupt
        seen.append(first)
        real(journal, first, answers)

    monkeypatch.setattr(kept, "append", append)


@pytest.mark.parametrize(
    ("ending", "sampled"),
    [("jsonl", {}), ("csv", {"temperature": 1.0, "seed": 3}), ("parquet", {"temperature": 0.7})],
)
def test_a_resumed_file_is_that_of_an_undisturbed_run(base, monkeypatch, ending, sampled):
    rows = written(rows_of(50))
    options = {**SHORT, **sampled, "keep_every": 8}
    out = f"a.{ending}"
    for windows in (2, 3):
        with monkeypatch.context() as patch:
            killed_after(patch, windows)
            with pytest.raises(KeyboardInterrupt):
                lorakit.generate(base, data=rows, out=out, resume=windows == 3, **options)
    with open(f"{out}.unfinished", "ab") as file:
        file.write(b'{"first": 40, "answers": [["half')
    seed = kept.begun(kept.place_of(Path(out))).seed
    made = lorakit.generate(base, data=rows, out=out, resume=True, **options)
    assert (made.rows, made.resumed) == (50, 40)
    undisturbed = f"b.{ending}"
    lorakit.generate(base, data=rows, out=undisturbed, **{**options, "seed": seed})
    assert content(out) == content(undisturbed)
    assert not [p for p in Path().iterdir() if "unfinished" in p.name]
    assert lorakit.generate(base, data=rows, out=out, resume=True, **options) is None


def test_a_sampled_row_depends_on_its_place_and_seed(base):
    rows = [{"prompt": "say lamp"}] * 12
    for out, seed, every in (("a", 1, 4), ("b", 1, 12), ("c", 2, 4)):
        options = {"temperature": 1.5, "seed": seed, "keep_every": every}
        lorakit.generate(base, data=rows, out=f"{out}.jsonl", **SHORT, **options)
    a, b, c = ([line["answer"] for line in lines(f"{n}.jsonl")] for n in "abc")
    assert a == b != c
    assert len(set(a)) > 6


def test_a_table_keeps_its_own_text(base):
    header = 'name;"prompt";note;'
    records = [
        'Ann;"say ""lamp""\r\nnow; please";001;',
        ' Bob ;say desk;"1,50";',
        '"";say river;NA;',
    ]
    with open("rows.csv", "wb") as file:
        file.write(b"\xef\xbb\xbf" + "\r\n".join([header, records[0], "", *records[1:]]).encode())
    lorakit.generate(base, data="rows.csv", out="a.csv", **SHORT)
    text = content("a.csv").decode()
    at = 0
    for record in (header, *records):
        at = text.index(record + ";", at) + len(record)
    assert text.startswith(header + ";answer;answer_probability\r\n")
    table = table_in("a.csv", ";")
    assert [row["note"] for row in table] == ["001", "1,50", "NA"]
    assert all(0 < float(row["answer_probability"]) <= 1 for row in table)


def test_values_survive_between_formats(base):
    with open("rows.jsonl", "w") as file:
        file.write(
            '{"prompt": "say lamp", "price": 3.50, "big": 12345678901234567890, "ok": true}\n'
        )
        file.write('{"prompt": "say desk", "tags": ["a", null], "price": 1e-7, "ok": null}\n')
    for ending in ("jsonl", "csv", "tsv"):
        lorakit.generate(base, data="rows.jsonl", out=f"a.{ending}", **SHORT)
    text = content("a.jsonl").decode()
    assert '"price": 3.50, "big": 12345678901234567890, "ok": true, "answer": ' in text
    assert '"price": 1e-7, "ok": null, "answer": ' in text
    for ending, delimiter in (("csv", ","), ("tsv", "\t")):
        rows = table_in(f"a.{ending}", delimiter)
        assert [r["price"] for r in rows] == ["3.50", "1e-7"]
        assert [r["tags"] for r in rows] == ["", '["a", null]']
        assert [r["ok"] for r in rows] == ["true", ""]
        assert rows[0]["answer"] == lines("a.jsonl")[0]["answer"]


def test_parquet_keeps_its_schema(base):
    types = {
        "prompt": pyarrow.large_string(),
        "n": pyarrow.int8(),
        "at": pyarrow.timestamp("us", "UTC"),
        "tags": pyarrow.map_(pyarrow.string(), pyarrow.int32()),
        "raw": pyarrow.binary(),
    }
    schema = pyarrow.schema([pyarrow.field(n, t) for n, t in types.items()], {b"mine": b"kept"})
    rows = [
        {"prompt": f"say {w}", "n": i, "at": i, "tags": [("a", i)], "raw": bytes([i, 255])}
        for i, w in enumerate(WORDS)
    ]
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    pyarrow.parquet.write_table(table, "rows.parquet", row_group_size=3)
    lorakit.generate(base, data="rows.parquet", out="a.parquet", **SHORT)
    made = pyarrow.parquet.read_table("a.parquet")
    assert made.select(table.column_names).equals(table)
    assert made.schema.metadata[b"mine"] == b"kept"
    assert made.column_names[-2:] == ["answer", "answer_probability"]
    assert made["answer"].null_count == 0
    with pytest.raises(DataError, match=r"rows\.parquet:1: 'raw' holds bytes.*\.parquet"):
        lorakit.generate(base, data="rows.parquet", out="a.jsonl", **SHORT)


def test_rows_of_other_kinds_become_parquet_where_their_types_agree(base):
    rows = [{"prompt": "a", "n": 1, "x": None}, {"prompt": "b", "n": 2.5, "o": {"k": [1]}}]
    lorakit.generate(base, data=written(rows), out="a.parquet", **SHORT)
    made = pyarrow.parquet.read_table("a.parquet").to_pylist()
    assert [row["n"] for row in made] == [1.0, 2.5]
    assert [row["o"] for row in made] == [None, {"k": [1]}]
    rows = [{"prompt": "a", "n": 1}, {"prompt": "b", "n": "two"}]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: a column.*'n'.*--out NAME\.jsonl"):
        lorakit.generate(base, data=written(rows), out="b.parquet", **SHORT)
    assert not Path("b.parquet.unfinished").exists()


def test_choices_give_a_label_and_the_probability_of_each(base, adapted):
    rows = rows_of(20)
    options = {"choices": ["lamp", "desk", "river"], "keep_every": 8}
    for ending in ("jsonl", "parquet", "csv"):
        out = f"a.{ending}"
        lorakit.generate(base, data=rows, out=out, adapter=adapted, **options)
    made = lines("a.jsonl")
    for line in made:
        shares = line["answer_probabilities"]
        assert list(shares) == options["choices"]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert line["answer"] == max(shares, key=shares.get)
        assert line["answer_probability"] == max(shares.values())
    table = pyarrow.parquet.read_table("a.parquet").to_pylist()
    assert [dict(r["answer_probabilities"]) for r in table] == [
        line["answer_probabilities"] for line in made
    ]
    read = table_in("a.csv")
    assert [json.loads(r["answer_probabilities"]) for r in read] == [
        line["answer_probabilities"] for line in made
    ]


def test_rows_are_asked_as_the_adapter_was_trained(base):
    """The recorded mapping makes the prompts; a mapping that is given goes over it."""
    rows = [{"question": f"say {word}", "label": word} for word in WORDS[:4]]
    model, _ = lorakit.load_model(str(base))
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    provenance = {
        "asking": {"model": str(base), "prompt": r"Q: {question}\n", "completion": "{label}"}
    }
    folder = lorakit.save_adapter(
        model,
        "trained",
        identity=lorakit.models.identify(lorakit.ModelSpec(str(base))),
        provenance=provenance,
    )
    bare = [{"question": row["question"]} for row in rows]
    lorakit.generate(adapter=folder, data=bare, out="recorded.jsonl", **SHORT)
    lorakit.generate(
        base, adapter=folder, data=bare, out="given.jsonl", prompt="{question}!", **SHORT
    )
    for name, form in (("recorded", "Q: {}\n"), ("given", "{}!")):
        prompts = [{"prompt": form.format(row["question"])} for row in rows]
        texts = [alone(base, p["prompt"])[0] for p in prompts]
        assert [line["answer"] for line in lines(f"{name}.jsonl")] == texts


def test_a_model_that_is_held_is_asked_by_the_mapping_of_its_pairs(base):
    rows = [{"question": f"say {word}"} for word in WORDS[:3]]
    model, tokenizer = lorakit.load_model(str(base))
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    lorakit.train(
        model,
        tokenizer,
        [{**row, "label": "x"} for row in rows * 4],
        prompt="{question}!",
        completion="{label}",
        max_steps=1,
        eval_share=0,
    )
    lorakit.generate(model, tokenizer=tokenizer, data=rows, out="a.jsonl", **SHORT)
    prompts = [{"prompt": f"{row['question']}!"} for row in rows]
    lorakit.generate(
        model, tokenizer=tokenizer, data=prompts, prompt="{prompt}", out="b.jsonl", **SHORT
    )
    assert [a["answer"] for a in lines("a.jsonl")] == [b["answer"] for b in lines("b.jsonl")]


@pytest.mark.parametrize(("chat", "completion"), [(True, "{label}"), (False, " {label}")])
def test_eval_and_generate_give_the_same_answers_and_probabilities(tmp_path, chat, completion):
    """The rows of `eval` have references, those of `generate` have none: what is asked is the same."""
    place = saved(tmp_path / "own", chat=chat)
    model, _ = lorakit.load_model(str(place))
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    asking = {"model": str(place), "prompt": r"Q: {question}\nA:", "completion": completion}
    identity = lorakit.models.identify(lorakit.ModelSpec(str(place)))
    folder = lorakit.save_adapter(
        model, "own-adapter", identity=identity, provenance={"asking": asking}
    )
    rows = [{"question": f"say {word}", "label": word} for word in WORDS[:6]]
    labels = list(WORDS[:3])
    lorakit.evaluate(None, rows, adapter=folder, choices=labels, out="eval", **SHORT)
    measured = lines("eval/answers.jsonl")
    bare = [{"question": row["question"]} for row in rows]
    lorakit.generate(adapter=folder, data=bare, out="a.jsonl", **SHORT)
    assert [a["answer"] for a in lines("a.jsonl")] == [m["answer"] for m in measured]
    lorakit.generate(adapter=folder, data=bare, out="c.jsonl", choices=labels)
    for line, m in zip(lines("c.jsonl"), measured, strict=True):
        assert line["answer"] == m["choice"]
        assert line["answer_probabilities"] == pytest.approx(m["probabilities"], rel=1e-3)


BAD = [
    ({"id": 2}, "hold none of: prompt"),
    ({"id": 2, "prompt": None}, "rows.jsonl:2"),
    ({"id": 2, "prompt": "word " * 300}, "passes the 512 that the model reads"),
]


@pytest.mark.parametrize(("bad", "why"), BAD)
def test_bad_rows_stop_the_command_before_the_first_answer_or_are_marked(base, bad, why):
    rows = [{"id": 1, "prompt": "say lamp"}, bad, {"id": 3, "prompt": "say desk"}, bad]
    name = written(rows)
    with pytest.raises(DataError, match=r"rows\.jsonl:2.*2 of 4 rows.*--bad-rows mark") as error:
        lorakit.generate(base, data=name, out="a.jsonl", **SHORT)
    assert why in str(error.value)
    assert not list(Path().glob("a.*"))
    made = lorakit.generate(base, data=name, out="a.jsonl", bad_rows="mark", **SHORT)
    assert made.errors == 2
    answers = lines("a.jsonl")
    assert [a["answer"] is None for a in answers] == [False, True, False, True]
    assert why in answers[1]["answer_error"]
    assert answers[0]["answer_error"] is None
    lorakit.generate(base, data=[rows[0], rows[2]], out="b.jsonl", **SHORT)
    assert [a["answer"] for a in lines("b.jsonl")] == [a["answer"] for a in answers[::2]]


def test_a_broken_line_names_file_and_line(base):
    with open("rows.jsonl", "w") as file:
        file.write('{"prompt": "a"}\n{"prompt": "b"\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: broken JSON"):
        lorakit.generate(base, data="rows.jsonl", out="a.jsonl", **SHORT)


@pytest.mark.parametrize("name", ["answer", "answer_probability"])
def test_a_column_that_is_there_is_never_overwritten(base, name):
    rows = [{"prompt": "a"}, {"prompt": "b", name: "mine"}]
    with pytest.raises(DataError, match=f"{name!r} already.*--answer-column generated"):
        lorakit.generate(base, data=rows, out="a.jsonl", **SHORT)
    lorakit.generate(base, data=rows, out="a.jsonl", answer_column="generated", **SHORT)
    assert lines("a.jsonl")[1][name] == "mine"
    assert lines("a.jsonl")[1]["generated"]


def test_references_are_kept_and_not_used(base):
    rows = [{"prompt": "say lamp", "completion": "pmal"}, {"prompt": "say desk", "completion": ""}]
    lorakit.generate(base, data=rows, out="a.jsonl", **SHORT)
    bare = [{"prompt": row["prompt"]} for row in rows]
    lorakit.generate(base, data=bare, out="b.jsonl", **SHORT)
    assert [a["completion"] for a in lines("a.jsonl")] == ["pmal", ""]
    assert [a["answer"] for a in lines("a.jsonl")] == [b["answer"] for b in lines("b.jsonl")]


def test_what_is_there_is_neither_overwritten_nor_mixed(base, monkeypatch):
    rows = written(rows_of(20))
    options = {**SHORT, "keep_every": 5}
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            lorakit.generate(base, data=rows, out="a.jsonl", **options)
    with pytest.raises(OutputError, match=r"a\.jsonl\.unfinished holds answers.*--resume"):
        lorakit.generate(base, data=rows, out="a.jsonl", **options)
    with pytest.raises(OutputError, match="begun with other max_new_tokens"):
        lorakit.generate(
            base, data=rows, out="a.jsonl", resume=True, **options | {"max_new_tokens": 6}
        )
    written(rows_of(20, seed=1))
    with pytest.raises(OutputError, match="begun with other rows"):
        lorakit.generate(base, data=rows, out="a.jsonl", resume=True, **options)
    written(rows_of(20))
    lorakit.generate(base, data=rows, out="a.jsonl", resume=True, **options)
    with pytest.raises(OutputError, match=r"a\.jsonl exists"):
        lorakit.generate(base, data=rows, out="a.jsonl", **options)


def test_rows_that_change_meanwhile_are_noticed(base, monkeypatch):
    rows = written(rows_of(20))
    real = answering._answer_all

    def changed(*arguments):
        real(*arguments)
        written(rows_of(20, seed=1))

    monkeypatch.setattr(answering, "_answer_all", changed)
    with pytest.raises(DataError, match=r"rows\.jsonl: the rows changed.*a\.jsonl\.unfinished"):
        lorakit.generate(base, data=rows, out="a.jsonl", **SHORT)
    assert not Path("a.jsonl").exists()


def test_a_damaged_file_of_answers_is_named(base):
    rows = written(rows_of(4))
    for text in (
        '{"first": 0}\n',
        "{}\nxx\n",
        '{"depends": {}, "environment": {}, "seed": 0}\n{"first": 7, "answers": []}\n',
    ):
        with open("a.jsonl.unfinished", "w") as file:
            file.write(text)
        with pytest.raises(OutputError, match=r"a\.jsonl\.unfinished"):
            lorakit.generate(base, data=rows, out="a.jsonl", resume=True, **SHORT)


def test_a_folder_stands_for_all_its_rows(base):
    Path("rows").mkdir()
    for name in ("train", "test"):
        written([{"prompt": f"say {name}"}], f"rows/{name}.jsonl")
    lorakit.generate(base, data="rows", out="a.jsonl", **SHORT)
    assert sorted(line["prompt"] for line in lines("a.jsonl")) == ["say test", "say train"]


@pytest.mark.parametrize(
    ("given", "error", "why"),
    [
        ({"out": "a.xlsx"}, ConfigError, "names no format"),
        ({"out": "a.jsonl", "prompts": "hello"}, ConfigError, "prompts and data"),
        ({"out": None}, ConfigError, "say where the answers go"),
        ({"out": "a.jsonl", "choices": ["one"]}, ConfigError, "at least two"),
        ({"out": "a.jsonl", "bad_rows": "stopp"}, ConfigError, "did you mean 'stop'"),
        ({"out": "a.jsonl", "answer_colum": "x"}, ConfigError, "answer_column"),
        ({"out": "a.jsonl", "keep_every": 0}, ConfigError, "keep_every"),
        ({"out": "a.jsonl", "choices": "ab", "seed": 1}, ConfigError, "no use with choices"),
    ],
)
def test_what_cannot_be_meant_is_refused(base, given, error, why):
    with pytest.raises(error, match=why):
        lorakit.generate(base, data=[{"prompt": "a"}], **given)


def test_probabilities_of_batches_are_those_of_single_prompts(base):
    """transformers' own generation: the probability of each answer, whatever shares its batch."""
    model, tokenizer = lorakit.load_model(str(base))
    prompts = [[5, 9, 20], [7] * 30, [40, 41]]
    together = generate(model, tokenizer, prompts, max_new_tokens=6, logprobs=True)
    for prompt, answer in zip(prompts, together, strict=True):
        ids = [*prompt, *answer.ids]
        with torch.no_grad():
            log_p = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        expected = sum(float(log_p[at - 1, ids[at]]) for at in range(len(prompt), len(ids)))
        if answer.finished:
            expected += max(float(log_p[-1, end]) for end in end_tokens(model, tokenizer))
        assert answer.logprob == pytest.approx(expected, rel=1e-4)


def test_rows_whose_logits_are_not_finite_stop_or_are_marked(base, monkeypatch):
    real = by_engine.answer_of
    monkeypatch.setattr(
        by_engine,
        "answer_of",
        lambda text, logprob, finished: real(text, math.nan, finished=finished),
    )
    rows = written(rows_of(3))
    with pytest.raises(
        LorakitError, match=r"rows\.jsonl:1: the model's logits are not finite.*--resume"
    ):
        lorakit.generate(base, data=rows, out="a.jsonl", **SHORT)
    made = lorakit.generate(base, data=rows, out="b.jsonl", bad_rows="mark", **SHORT)
    assert made.errors == 3
