"""Files that are not what they should be: the true column, and the line that works."""

import subprocess

import pytest

from lorakit.data.files import check_sources
from lorakit.data.recognising import recognise
from lorakit.data.records import read_rows
from lorakit.data.spec import DataSpec
from lorakit.errors import DataError

GOOD = '{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize(
    ("name", "text", "broken"),
    [
        ("plain.jsonl", GOOD + '{"prompt": "a", "completion": «b}\n', "«"),
        ("indented.jsonl", GOOD + '    {"prompt": "a", "completion": «b}\n', "«"),
        ("tabs.jsonl", GOOD + '\t\t{"prompt": "a" «"completion": "b"}\n', "«"),
        ("emoji.jsonl", GOOD + '  {"prompt": "😀", "completion": «b}\n', "«"),
        ("list.json", '[{"prompt": "a"},\n   {"prompt": "a" «"completion": "b"}]\n', "«"),
        ("one_line.json", '  [{"prompt": "a"}, {"prompt": «b}]\n', "«"),
        ("list.jsonl", '[{"prompt": "a"}, {"prompt": «b}]\n', "«"),
    ],
)
def test_the_true_column(tmp_path, monkeypatch, name, text, broken):
    monkeypatch.chdir(tmp_path)
    line = next(i for i, part in enumerate(text.splitlines(), 1) if broken in part)
    column = text.splitlines()[line - 1].index(broken) + 1
    (tmp_path / name).write_text(text.replace(broken, ""))
    with pytest.raises(DataError) as error:
        list(read_rows([name]))
    assert f"{name}:{line}: " in str(error.value)
    assert f"at column {column}" in str(error.value)


@pytest.mark.parametrize(
    "content", ["hello there,greeting\nbye,farewell\n", "1,hello,greeting\n2,bye,end\n"]
)
def test_a_table_without_a_header(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my rows.csv").write_text(content)
    with pytest.raises(DataError) as error:
        recognise(next(iter(read_rows(["my rows.csv"]))), DataSpec())
    line = str(error.value).rpartition(": ")[2]
    subprocess.run(line, shell=True, check=True, cwd=tmp_path)  # as it is printed
    (named,) = tmp_path.glob("*-named.csv")
    read = list(read_rows([str(named)]))
    assert len(read) == 2
    assert list(read[0].fields)[:2] == ["prompt", "completion"]
    recognise(read[0], DataSpec())


def test_a_list_in_a_jsonl_file_is_read(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(f"[{GOOD.strip()}, {GOOD.strip()}]")
    assert len(list(read_rows([str(file)]))) == 2


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        *((f"the rows.{kind}", "csv") for kind in ("xlsx", "xls", "ods", "numbers")),
        *((f"the rows.{kind}", "txt") for kind in ("docx", "odt", "rtf", "pdf", "html")),
        ("rows.parq", "rename it to .parquet"),
    ],
)
def test_files_of_other_programs(tmp_path, monkeypatch, name, advice):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError) as error:
        check_sources([name])
    assert advice in str(error.value).lower().partition("known: ")[0]
    if "soffice" in str(error.value):
        assert f"'{name}'" in str(error.value)
