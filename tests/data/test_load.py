"""From a DataSpec to tokens: splits, limits, hashes, and what is said aloud."""

import json

import pytest

from lorakit.data import DataSpec, Template, load_data, load_rows
from lorakit.data.encode import encode
from lorakit.errors import ConfigError, DataError


def write(path, rows):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return str(path)


def qa(n, start=0):
    return [{"prompt": f"q{i}", "completion": "a" * (1 + i % 5)} for i in range(start, start + n)]


@pytest.fixture
def train(tmp_path):
    return write(tmp_path / "train.jsonl", qa(40))


def origins(table):
    return [row.origin for row in table]


def test_training_and_held_out_files(tmp_path, train, chatml):
    valid = write(tmp_path / "valid.jsonl", qa(10, start=100))
    spec = DataSpec(data=(train,), eval_data=(valid,), max_rows=30, max_eval_rows=4)
    found = load_data(spec, chatml)
    assert origins(found.train) == [f"{train}:{i}" for i in range(1, 31)]
    assert origins(found.eval) == [e.origin for e in found.eval_examples]
    assert [e.prompt for e in found.eval_examples] == ["q100", "q101", "q102", "q103"]
    for row, example in zip(found.eval, found.eval_examples, strict=True):
        assert row.ids.tolist() == encode(example, chatml, found.template).ids.tolist()
    assert (found.train_counts.kept, found.eval_counts.kept) == (30, 4)
    assert found.notes[0] == "Rows are prompt + completion: completions are supervised."
    assert "Read the first 30 training rows (max_rows)." in found.notes


def test_a_seeded_share_is_held_out(train, chatml):
    spec = DataSpec(data=(train,), eval_share=0.25)
    one, two, other = (load_data(spec, chatml, seed=s) for s in (1, 1, 2))
    assert len(one.eval) == 10
    assert sorted(origins(one.train) + origins(one.eval)) == sorted(
        f"{train}:{i}" for i in range(1, 41)
    )
    assert origins(one.eval) == [e.origin for e in one.eval_examples]
    assert origins(one.eval) == origins(two.eval)
    assert one.data_sha256 == two.data_sha256 != other.data_sha256
    assert set(origins(one.eval)) != set(origins(other.eval))
    assert "Held out 10 of 40 rows (eval_share 0.25, seed 1)" in one.notes[-1]
    few = load_data(DataSpec(data=(train,), eval_share=0.25, max_eval_rows=3), chatml)
    assert "Held out 3 of 40 rows (eval_share 0.25, max_eval_rows 3, seed 0)" in few.notes[-1]
    assert len(few.train) == 37


def test_rows_with_the_same_prompt_stay_together(tmp_path, chatml):
    rows = [{"prompt": f"q{i // 4}", "completion": f"a{i}"} for i in range(80)]
    spec = DataSpec(data=(write(tmp_path / "x.jsonl", rows),), eval_share=0.2)
    found = load_data(spec, chatml)
    held = {e.prompt for e in found.eval_examples}
    assert len(found.eval) == 16
    assert len(held) == 4
    lines = {int(o.rpartition(":")[2]) - 1 for o in origins(found.train)}
    assert not held & {rows[i]["prompt"] for i in lines}


def test_nothing_held_out(tmp_path, train, chatml):
    none = load_data(DataSpec(data=(train,), eval_share=0.0), chatml)
    assert (len(none.train), len(none.eval), none.eval_examples) == (40, 0, ())
    assert "No rows are held out" in none.notes[-1]
    same = write(tmp_path / "same.jsonl", [{"prompt": "q", "completion": "a"}] * 3)
    found = load_data(DataSpec(data=(same,)), chatml)
    assert len(found.eval) == 0
    assert "all rows have the same prompt" in " ".join(found.notes)
    assert "2 training rows repeat an earlier one" in found.notes[-1]


def test_the_hash_is_of_the_content_and_not_of_the_file(tmp_path, train, chatml):
    csv = tmp_path / "other.csv"
    csv.write_text(
        "prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in qa(40))
    )
    a = load_data(DataSpec(data=(train,)), chatml)
    b = load_data(DataSpec(data=(str(csv),)), chatml)
    assert a.data_sha256 == b.data_sha256
    changed = write(tmp_path / "changed.jsonl", [*qa(39), {"prompt": "q39", "completion": "other"}])
    assert load_data(DataSpec(data=(changed,)), chatml).data_sha256 != a.data_sha256


def test_rows_in_both_are_said(tmp_path, train, chatml):
    valid = write(tmp_path / "valid.jsonl", [*qa(2, start=100), *qa(1, start=5)])
    found = load_data(DataSpec(data=(train,), eval_data=(valid,)), chatml)
    assert (
        f"1 of 3 held-out rows are also training rows (the first is {valid}:3, equal to {train}:6)"
        in found.notes[-1]
    )


LONG = [
    {"prompt": "q", "completion": "a"},
    {"prompt": "q", "completion": "b" * 9},
    {"prompt": "q" * 9, "completion": "c"},
    {"prompt": "qq", "completion": "d"},
]


def test_rows_that_are_too_long(tmp_path, plain):
    # raw: prompt + completion + eos = 3, 11, 11, 4 tokens
    path = write(tmp_path / "x.jsonl", LONG)

    def load(**values):
        return load_data(DataSpec(data=(path,), eval_share=0.0, max_length=6, **values), plain)

    with pytest.raises(DataError) as caught:
        load()
    said = str(caught.value)
    assert said.startswith(f"{path}:2: the row is 11 tokens long and the limit is 6")
    assert "2 of 4 rows are longer, the longest has 11" in said
    assert "--too-long drop" in said
    assert "--too-long cut" in said

    dropped = load(too_long="drop")
    assert origins(dropped.train) == [f"{path}:1", f"{path}:4"]
    assert (
        "2 of 4 training rows are longer than 6 tokens (the longest has 11): 2 were dropped."
        in dropped.notes
    )

    cut = load(too_long="cut")
    # the third's beginning holds nothing of its answer
    assert origins(cut.train) == [f"{path}:1", f"{path}:2", f"{path}:4"]
    assert plain.decode(cut.train[1].ids) == "qbbbbb"
    report = cut.train_counts
    assert (report.read, report.kept, report.too_long, report.truncated, report.dropped) == (
        4,
        3,
        2,
        1,
        1,
    )
    assert "1 were truncated and 1 were dropped" in " ".join(cut.notes)


def test_held_out_examples_match_their_rows_where_some_are_dropped(tmp_path, train, plain):
    path = write(tmp_path / "x.jsonl", LONG)
    spec = DataSpec(data=(train,), eval_data=(path,), max_length=9, too_long="drop")
    found = load_data(spec, plain)
    assert [e.prompt for e in found.eval_examples] == ["q", "qq"]
    assert origins(found.eval) == [e.origin for e in found.eval_examples]
    share = load_data(DataSpec(data=(path,), max_length=6, too_long="drop", eval_share=0.5), plain)
    assert origins(share.eval) == [e.origin for e in share.eval_examples]
    assert len(share.eval) == len(share.train) == 1


def test_the_models_own_limit(tmp_path, plain):
    path = write(tmp_path / "x.jsonl", LONG)
    with pytest.raises(DataError, match="the limit is 10"):
        load_data(DataSpec(data=(path,)), plain, context_length=10)
    with pytest.raises(ConfigError, match="max_length is 20, but the model reads at most 10"):
        load_data(DataSpec(data=(path,), max_length=20), plain, context_length=10)
    spec = DataSpec(data=(path,), max_length=2, too_long="drop")
    with pytest.raises(DataError, match="all 4 rows are longer than 2 tokens"):
        load_data(spec, plain)


def test_rows_to_measure_on_by_the_recorded_template(train, chatml, plain):
    template = Template("raw")
    table, examples, report = load_rows([train], DataSpec(), chatml, template, limit=3)
    assert origins(table) == [e.origin for e in examples] == [f"{train}:{i}" for i in (1, 2, 3)]
    assert chatml.decode(table[0].ids) == "q0a<|im_end|>"
    assert report.read == 3
    recorded = load_data(DataSpec(data=(train,)), chatml, template=template)
    assert chatml.decode(recorded.train[0].ids).count("<|im_start|>") == 0
    assert plain.chat_template is None


@pytest.mark.parametrize(
    ("prompt", "completion", "warned"),
    [("q", "a", True), ("q\n", "a", False), ("q", " a", False)],
)
def test_a_raw_prompt_that_runs_into_its_answer_is_said(
    tmp_path, plain, prompt, completion, warned
):
    path = write(tmp_path / "x.jsonl", [{"prompt": prompt, "completion": completion}] * 2)
    notes = load_data(DataSpec(data=(path,)), plain).notes
    assert any("No white space separates the prompt" in n for n in notes) == warned


def test_oddities_of_a_chat_template_are_said(tmp_path, train, make_tokenizer):
    source = "{{ strftime_now('%d') }}{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    notes = " ".join(load_data(DataSpec(data=(train,)), make_tokenizer(template=source)).notes)
    assert "writes today's date" in notes
    assert "ends an answer without a special token" in notes


def test_folders_and_other_shapes_are_said(tmp_path, train, chatml):
    folder = tmp_path / "valid"
    folder.mkdir()
    write(folder / "a.jsonl", [{"instruction": "i", "output": "o"}])
    notes = load_data(DataSpec(data=(train,), eval_data=(str(folder),)), chatml).notes
    assert notes[0] == f"The folder {folder} stands for a.jsonl."
    assert "Held-out rows are instruction (+ input) + output: outputs are supervised." in notes


def test_no_data(chatml):
    with pytest.raises(ConfigError, match="data is empty"):
        load_data(DataSpec(), chatml)
