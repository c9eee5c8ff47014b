"""Every generated file is read as its maker says, or refused with an error that helps."""

import re

import pytest

from broken_row_files import broken_files
from lorakit.data import DataSpec, load_data, read_rows, recognise
from lorakit.data.notes import shape_note
from lorakit.data.sources import by_split, training_notes
from lorakit.errors import DataError
from row_files import Reading, valid_files

VALID, BROKEN = valid_files(), broken_files()


def written(case, folder, files=None):
    for name, content in (case.files if files is None else files).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / case.source


def examples(spec, sources):
    """Every row as an example, and what is said of them."""
    shape, found = None, []
    for row in read_rows(sources):
        shape = shape or recognise(row, spec)
        found.append(shape.example(row))
    return found, shape_note(shape)


def read(spec):
    """As `load_data` reads, without a tokenizer: training rows, held-out rows, notes."""
    notes = training_notes(spec)
    spec = by_split(spec)
    rows, note = examples(spec, spec.data)
    held_out = examples(spec, spec.eval_data)[0] if spec.eval_data else []
    return rows, held_out, " ".join([*notes, note])


def reading(example):
    if example.messages is None:
        return Reading(prompt=example.prompt, completion=example.completion, text=example.text)
    calls = tuple(
        (i, call["function"]["name"], call["function"]["arguments"])
        for i, message in enumerate(example.messages)
        for call in message.get("tool_calls", ())
    )
    turns = tuple((m["role"], m["content"]) for m in example.messages)
    return Reading(turns=turns, calls=calls, tools=tuple(example.tools))


def test_there_are_as_many_as_were_asked_for():
    assert len(VALID) >= 60
    assert len(BROKEN) >= 200
    for cases in (VALID, BROKEN):
        names = [case.name for case in cases]
        assert [name for name in names if names.count(name) > 1] == []


@pytest.mark.parametrize("case", VALID, ids=lambda c: c.name)
def test_a_valid_file_is_read_as_it_is_meant(case, tmp_path):
    source = written(case, tmp_path)
    rows, held_out, notes = read(DataSpec(data=(str(source),), **case.options))
    assert [reading(e) for e in rows] == list(case.rows)
    assert [reading(e) for e in held_out] == list(case.held_out)
    for part in case.says:
        assert part in notes


@pytest.mark.parametrize("seed", [1])
def test_other_words_in_the_same_forms(seed, tmp_path):
    for case in valid_files(1000 * seed):
        rows, *_ = read(DataSpec(data=(str(written(case, tmp_path / case.name)),), **case.options))
        assert [reading(e) for e in rows] == list(case.rows), case.name


@pytest.fixture
def refusal(chatml):
    def call(case, source):
        with pytest.raises(DataError) as caught:
            load_data(DataSpec(data=(str(source),), eval_share=0, **case.options), chatml)
        return str(caught.value)

    return call


@pytest.mark.parametrize("case", BROKEN, ids=lambda c: c.name)
def test_a_broken_file_is_refused_where_it_is_broken(case, tmp_path, refusal):
    source = written(case, tmp_path)
    said = refusal(case, source)
    assert said.startswith(str(source))
    if case.line is not None:
        assert f"{source.name}:{case.line}: " in said
    for part in case.says:
        assert part in said


ADVISED = [case for case in BROKEN if case.mend is not None]


@pytest.mark.parametrize("case", ADVISED, ids=lambda c: c.name)
def test_the_advice_of_an_error_was_tried(case, tmp_path, refusal):
    """The files as the advice would have them, under the name that it gives, are read."""
    said = refusal(case, written(case, tmp_path / "before"))
    name = case.mended_source or case.source
    if case.mended_source and case.mended_source != case.source:
        assert case.mended_source in said or f".{case.mended_source.split('.')[-1]}" in said
    written(case, tmp_path / "after", case.mend)
    rows, *_ = read(DataSpec(data=(str(tmp_path / "after" / name),), **case.options))
    assert rows


def test_a_mapping_that_is_advised_works(tmp_path, refusal):
    tried = 0
    for case in (c for c in BROKEN if any("--prompt" in part for part in c.says)):
        source = written(case, tmp_path / case.name)
        found = re.search(r"--prompt '([^']*)' --completion '([^']*)'", refusal(case, source))
        if found is None or found[1] == "{QUESTION}" or case.mend is not None:
            continue
        assert "reject" not in found[2]
        rows, *_ = read(DataSpec(data=(str(source),), prompt=found[1], completion=found[2]))
        assert rows, case.name
        tried += 1
    assert tried >= 5


def test_files_that_are_named_by_an_advice_can_be_given(tmp_path, refusal):
    tried = 0
    for case in (c for c in BROKEN if "." not in c.source):  # folders
        source = written(case, tmp_path / case.name)
        found = re.search(r"for example --data (\S+)", refusal(case, source))
        if found:
            assert read(DataSpec(data=(found[1],)))[0], case.name
            tried += 1
    assert tried >= 3


def test_empty_answers_can_be_dropped_as_is_advised(tmp_path, chatml, refusal):
    for kind in (
        "empty-from-2.jsonl",
        "null-from-3.json",
        "empty-answer.jsonl",
        "null-answer.jsonl",
    ):
        (case,) = (case for case in BROKEN if case.name == kind)
        source = written(case, tmp_path / case.name)
        assert "--drop empty" in refusal(case, source)
        spec = DataSpec(data=(str(source),), eval_share=0, drop=("empty",))
        assert load_data(spec, chatml).train_counts.empty == 1
