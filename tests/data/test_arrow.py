"""Arrow's nulls for absent keys are left out of tools and calls; a null that was written stays."""

import json

import pandas
import pyarrow
import pyarrow.parquet
import pytest

from lorakit.data import DataSpec, read_rows, recognise
from lorakit.data.given import as_source
from lorakit.errors import DataError

ASKED = {"role": "user", "content": "How warm is it?"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {key: {"type": "string"}}},
        },
    }
    for name, key in (("weather", "city"), ("clock", "zone"))
]


def calling(name, **arguments):
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


ROWS = [
    {"messages": [ASKED, calling("weather", city="Oslo")], "tools": TOOLS},
    {"messages": [ASKED, calling("clock", zone={"name": "CET", "hour": 1})], "tools": TOOLS[1:]},
    {"messages": [ASKED, calling("clock", zone={"name": "UTC"}, days=[1, None])], "tools": TOOLS},
]
ARGUMENTS = [
    {"city": "Oslo"},
    {"zone": {"name": "CET", "hour": 1}},
    {"zone": {"name": "UTC"}, "days": [1, None]},
]


def examples(source):
    rows = list(read_rows([source]))
    shape = recognise(rows[0], DataSpec())
    return [shape.example(row) for row in rows], shape


def arguments(found):
    return [e.messages[1]["tool_calls"][0]["function"]["arguments"] for e in found]


def parquet(path, table):
    pyarrow.parquet.write_table(table, path)
    return str(path)


def test_the_nulls_that_arrow_adds_are_no_arguments_and_no_parameters(tmp_path):
    path = parquet(tmp_path / "x.parquet", pyarrow.Table.from_pylist(ROWS))
    read = pyarrow.parquet.read_table(path).to_pylist()[0]["messages"][1]["tool_calls"][0]
    assert read["function"]["arguments"] == {"city": "Oslo", "zone": None, "days": None}
    found, shape = examples(path)
    assert arguments(found) == ARGUMENTS
    assert [list(e.tools) for e in found] == [row["tools"] for row in ROWS]
    assert "as Arrow writes absent ones" in shape.description


def test_a_frame_that_pandas_read_from_parquet(tmp_path):
    path = parquet(tmp_path / "x.parquet", pyarrow.Table.from_pylist(ROWS))
    found, _ = examples(as_source(pandas.read_parquet(path)))
    assert arguments(found) == ARGUMENTS


@pytest.mark.parametrize("given", ["file", "memory"])
def test_a_null_that_was_written_in_json_stays(given, tmp_path):
    rows = [{"messages": [ASKED, calling("weather", city="Oslo", days=None)]}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found, shape = examples(str(tmp_path / "x.jsonl") if given == "file" else as_source(rows))
    assert arguments(found) == [{"city": "Oslo", "days": None}]
    assert "Arrow" not in shape.description


def test_a_json_column_is_read_as_it_was_written(tmp_path):
    """`datasets` keeps objects of different keys as JSON text, and writes Parquet so."""
    kind = pyarrow.field(
        "element",
        pyarrow.string(),
        metadata={"ARROW:extension:name": "arrow.json", "ARROW:extension:metadata": ""},
    )
    texts = [[json.dumps(m) for m in (ASKED, calling("weather", city="Oslo", days=None))]]
    column = pyarrow.array(texts, pyarrow.list_(kind))
    path = parquet(tmp_path / "x.parquet", pyarrow.table({"messages": column}))
    found, shape = examples(path)
    assert arguments(found) == [{"city": "Oslo", "days": None}]
    assert "Arrow" not in shape.description


def test_json_that_datasets_read_and_wrote_as_parquet(tmp_path):
    import datasets

    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, ROWS[:2])))
    kept = datasets.load_dataset(
        "json", data_files=str(tmp_path / "x.jsonl"), split="train", cache_dir=str(tmp_path / "c")
    )
    kept.to_parquet(tmp_path / "y.parquet")
    for source in (str(tmp_path / "y.parquet"), as_source(kept)):
        found, _ = examples(source)
        assert arguments(found) == ARGUMENTS[:2]


@pytest.mark.parametrize("form", ["stream", "parquet"])
def test_text_that_is_not_utf8_is_an_error_of_the_file(form, tmp_path):
    bad = pyarrow.array([b"ok", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    table = pyarrow.table({"prompt": bad, "completion": ["a", "b"]})
    path = tmp_path / ("x.arrow" if form == "stream" else "x.parquet")
    if form == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with path.open("wb") as out, pyarrow.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match=rf"{path.name}: broken .*UTF8"):
        list(read_rows([str(path)]))
