"""Rows arrive as written, and what cannot be read names its file and line."""

import bz2
import csv
import gzip
import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.data import Encoded, TokenTable, check_sources, read_rows
from lorakit.errors import DataError

COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(text, v, max_size=3),
    max_leaves=6,
)


def rows_of(path):
    return [(r.line, r.fields) for r in read_rows([str(path)])]


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


@given(
    # two rows and more: one object alone may be what wraps the rows, see test_documents.py
    rows=st.lists(st.dictionaries(text, values, max_size=4), min_size=2, max_size=6),
    ascii_=st.booleans(),
    compression=st.sampled_from(sorted(COMPRESS)),
    blank=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_jsonl_gives_back_what_was_written(folder, rows, ascii_, compression, blank):
    gap = "\n\n" if blank else "\n"
    lines = gap.join(json.dumps(r, ensure_ascii=ascii_) for r in rows)
    path = write(folder, f"r.jsonl{compression}", COMPRESS[compression](lines.encode()))
    step = 2 if blank else 1
    assert rows_of(path) == [(1 + step * i, row) for i, row in enumerate(rows)]


@given(
    rows=st.lists(st.dictionaries(text, values, max_size=4), min_size=1, max_size=6),
    indent=st.sampled_from([None, 2]),
)
@settings(max_examples=50, deadline=None)
def test_json_arrays_and_the_lines_their_rows_begin_on(folder, rows, indent):
    written = json.dumps(rows, indent=indent)
    found = rows_of(write(folder, "r.json", written))
    assert [fields for _, fields in found] == rows
    if indent:
        # with an indent of 2, a row begins on each line that is "  {" or "  {},"
        begins = [i for i, x in enumerate(written.split("\n"), 1) if x[:3] == "  {"]
        assert [line for line, _ in found] == begins


@given(
    rows=st.lists(st.tuples(text, text, text), min_size=1, max_size=6),
    name=st.sampled_from(["r.csv", "r.tsv"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=80, deadline=None)
def test_tables_give_back_what_was_written(folder, rows, name, end):
    out = io.StringIO(newline="")
    delimiter = "\t" if name.endswith("tsv") else ","
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b", "c"), *rows])
    # the csv module cannot read a NUL before Python 3.13, nor keep a lone \r apart from a line end
    rows = [r for r in rows if not any("\0" in v for v in r)]
    if "\0" in out.getvalue():
        return
    found = rows_of(write(folder, name, out.getvalue()))
    assert [tuple(f.values()) for _, f in found] == rows
    assert all(list(f) == ["a", "b", "c"] for _, f in found)


def test_values_are_not_interpreted(tmp_path):
    path = write(tmp_path, "x.csv", "id,text,n\n001,NA,1.0\n002,2024-01-01,\n")
    assert [f for _, f in rows_of(path)] == [
        {"id": "001", "text": "NA", "n": "1.0"},
        {"id": "002", "text": "2024-01-01", "n": ""},
    ]
    path = write(tmp_path, "x.jsonl", '{"s": {"a": "1"}, "p": 3.50}\n{"s": {"b": "2"}}\n')
    (_, first), (_, second) = rows_of(path)
    assert first == {"s": {"a": "1"}, "p": 3.5}
    assert str(first["p"]) == "3.50"
    assert second == {"s": {"b": "2"}}


def test_a_quoted_field_over_several_lines(tmp_path):
    path = write(tmp_path, "x.csv", 'a,b\n"one\ntwo",2\n\n3,"4 ""x"""\n')
    assert rows_of(path) == [(2, {"a": "one\ntwo", "b": "2"}), (5, {"a": "3", "b": '4 "x"'})]


def test_a_mark_before_the_first_line_is_no_part_of_it(tmp_path):
    assert rows_of(write(tmp_path, "x.csv", "\ufeffa,b\n1,2\n")) == [(2, {"a": "1", "b": "2"})]
    assert rows_of(write(tmp_path, "x.jsonl", '\ufeff{"a": 1}')) == [(1, {"a": 1})]


def test_one_object_a_line_in_a_json_file(tmp_path):
    assert rows_of(write(tmp_path, "x.json", '{"a": 1}\n{"a": 2}\n')) == [
        (1, {"a": 1}),
        (2, {"a": 2}),
    ]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_parquet(tmp_path, compression):
    rows = [{"q": "x", "s": {"a": 1}, "l": ["p"]}, {"q": None, "s": {"a": 2}, "l": []}]
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    path = write(tmp_path, f"x.parquet{compression}", COMPRESS[compression](out.getvalue()))
    assert rows_of(path) == [(1, rows[0]), (2, rows[1])]


def test_a_folder_is_its_files_in_order_of_their_names(tmp_path):
    write(tmp_path, "b.jsonl", '{"a": 2}')
    write(tmp_path, "a.csv", "a\n1\n")
    write(tmp_path, "README.md", "no rows")
    write(tmp_path, ".hidden.jsonl", "{")
    assert [r.fields for r in read_rows([str(tmp_path)])] == [{"a": "1"}, {"a": 2}]


def test_a_limit_reads_no_further(tmp_path):
    path = write(tmp_path, "x.jsonl", '{"a": 1}\n{"a": 2}\nbroken\n')
    assert [r.fields["a"] for r in read_rows([str(path)], limit=2)] == [1, 2]


def test_several_zstd_frames(tmp_path):
    content = zstandard.compress(b'{"a": 1}\n') + zstandard.compress(b'{"a": 2}\n')
    assert len(rows_of(write(tmp_path, "x.jsonl.zst", content))) == 2


def message(path, **kwargs):
    with pytest.raises(DataError) as caught:
        list(read_rows([str(path)], **kwargs))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "line", "says"),
    [
        ("x.jsonl", '{"a": 1}\n{"a": }\n', 2, "broken JSON: Expecting value at column 7"),
        ("x.jsonl", '{"a": 1} {"a": 2}\n', 1, "broken JSON: Extra data"),
        ("x.jsonl", '{"a": 1}\n[1]\n', 2, "a row must be a JSON object"),
        ("x.jsonl", '{"a": 1, "a": 2}\n', 1, "the key 'a' occurs twice"),
        ("x.jsonl", '{"a": NaN}\n', 1, "NaN is not JSON"),
        ("x.jsonl", '{"a": "\\ud800"}\n', 1, "half of a surrogate pair"),
        ("x.jsonl", "[" * 100_000, 1, "broken JSON"),
        ("x.json", '[{"a": 1},\n {"a": 2}\n {"a": 3}]', 3, "expected ',' or ']'"),
        ("x.json", '[{"a": 1},\n {"a": }]', 2, "broken JSON: Expecting value"),
        ("x.json", '[{"a": 1},\n "b"]', 2, "a row must be a JSON object"),
        ("x.json", '[{"a": 1}\n', 2, "expected ',' or ']'"),
        ("x.json", '[{"a": 1},]', 1, "expected ',' or ']'"),
        ("x.json", '[{"a": 1}] x', 1, "'x' after the closing ']'"),
        ("x.csv", "a,b\n1,2\n1,2,3\n", 3, "3 fields where the header has 2"),
        ("x.csv", "a,b\n1\n", 2, "1 fields where the header has 2"),
        ("x.csv", 'a,b\n1,2\n"open,2\n3,4\n', 3, "broken CSV"),
        ("x.tsv", 'a\tb\n"x" y\t2\n', 2, "broken TSV"),
        ("x.csv", "a,a\n1,2\n", 1, "names the column 'a' twice"),
        ("x.csv", "a,,c\n1,2,3\n", 2, "column 2 of the header has no name, and holds '2'"),
        ("x.csv", ",,\n1,2,3\n", 1, "no column of the header has a name"),
        ("x.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}\n', 2, "not UTF-8 (byte 0xe9 at column 11)"),
        ("x.jsonl", '{"a": 1}'.encode("utf-16"), 1, "UTF-16"),
    ],
)
def test_a_broken_row_names_its_file_and_line(tmp_path, name, content, line, says):
    path = write(tmp_path, name, content)
    said = message(path)
    assert said.startswith(f"{path}:{line}: ")
    assert says in said


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.jsonl", "", "the file is empty"),
        ("x.jsonl", "\n\n", "the file holds no rows"),
        ("x.csv", "a,b\n", "the file holds no rows"),
        ("x.json", "[]", "the file holds no rows"),
        ("x.jsonl.gz", gzip.compress(b"", mtime=0), "the file holds no rows"),
        (
            "x.xml",
            "<a/>",
            "the format '.xml' is not known; write the rows as JSON lines; known: .jsonl",
        ),
        ("x.parquet", "PAR1 not really", "broken Parquet"),
    ],
)
def test_a_file_without_rows(tmp_path, name, content, says):
    path = write(tmp_path, name, content)
    said = message(path)
    assert said.startswith(f"{path}: ")
    assert says in said


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".zst"])
def test_a_truncated_compressed_file(tmp_path, compression):
    lines = b"".join(
        json.dumps({"a": f"{i * 7919 % 10007}"}).encode() + b"\n" for i in range(50_000)
    )
    content = COMPRESS[compression](lines)
    path = write(tmp_path, f"x.jsonl{compression}", content[: len(content) // 2])
    said = message(path)
    assert said.startswith(f"{path}:")
    assert "ends early" in said
    assert "download it again" in said
    path = write(tmp_path, f"y.jsonl{compression}", content[:-3])
    assert "ends early" in message(path)


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".zst"])
def test_a_file_that_is_not_compressed_as_its_name_says(tmp_path, compression):
    path = write(tmp_path, f"x.jsonl{compression}", '{"a": 1}\n' * 100)
    said = message(path)
    assert said.startswith(f"{path}:1: the {compression} data is damaged before the first line")


def test_a_missing_file_names_its_neighbours(tmp_path):
    write(tmp_path, "train.jsonl", "{}")
    assert "did you mean 'train.jsonl'?" in message(tmp_path / "trian.jsonl")
    assert "does not exist either" in message(tmp_path / "no" / "train.jsonl")


def test_a_folder_without_rows(tmp_path):
    write(tmp_path, "notes.md", "x")
    said = message(tmp_path)
    assert "no file of rows in this folder ('notes.md')" in said


def test_a_relative_name_in_a_folder_that_is_there_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", "train.jsonl", "{}")
    assert "data/trian: no such file or folder; in data: known: 'train.jsonl'" in message(
        "data/trian"
    )


def test_hub_ids_go_through_datasets(monkeypatch):
    import datasets

    asked = []

    def load(name, config, *, split):
        asked.append((name, config, split))
        if name == "who/nobody":
            raise datasets.exceptions.DatasetNotFoundError(
                "Dataset 'who/nobody' doesn't exist\nmore"
            )
        return [{"q": "1"}, {"q": "2"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = list(read_rows(["org/set", "org/set:test", "org/set:main:test"], limit=5))
    assert asked == [
        ("org/set", None, "train"),
        ("org/set", None, "test"),
        ("org/set", "main", "test"),
    ]
    assert [r.origin for r in rows[:3]] == ["org/set:1", "org/set:2", "org/set:test:1"]
    said = message("who/nobody")
    assert said.startswith("who/nobody: neither a file or folder here, nor")
    assert said.endswith("Dataset 'who/nobody' doesn't exist")
    assert "id:config:split" in message("a:b:c:d")


def test_rows_that_share_a_line_are_told_apart(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text('[{"text": "a"}, {"text": "b"},\n {"text": "c"}]')
    first, second, third = (row.origin for row in read_rows([str(file)]))
    assert first == f"{file}:1"
    assert second == f"{file}:1 (row 2 of the line)"
    assert third == f"{file}:2"
    file.write_text('{"data": [{"text": "a"}, {"text": "b"}]}')
    assert len({row.origin for row in read_rows([str(file)])}) == 2


@pytest.mark.parametrize("typed", ["asked.cvs", "askd.csw", "asked.cs"])
def test_a_slip_in_a_name_is_not_asked_of_the_hub(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asked.csv").write_text("prompt,completion\na,b\n")
    with pytest.raises(DataError, match=r"no such file; in \.: did you mean 'asked\.csv'"):
        check_sources([typed])


def test_a_table_of_tokens_keeps_them_apart(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text('[{"text": "a"}, {"text": "b"}]')
    origins = [row.origin for row in read_rows([str(file)])]
    one = np.array([1, 2], dtype=np.int32)
    made = (Encoded(one, np.array([0, 1], dtype=np.uint8), origin) for origin in origins)
    assert [row.origin for row in TokenTable.build(made)] == origins
