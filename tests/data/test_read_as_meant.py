"""Files that were once read as something else, half read, or refused with an advice that does not help."""

import json
import re

import pandas
import pytest

from lorakit.data import DataSpec, read_rows, recognise
from lorakit.errors import DataError

ROW = '{"prompt": "q", "completion": "a"}\n'


@pytest.fixture
def read(tmp_path):
    """Write a file and read it: its examples, and how they are read."""

    def call(name, content, **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        rows = list(read_rows([str(path)]))
        shape = recognise(rows[0], DataSpec(data=(str(path),), **options))
        return [shape.example(row) for row in rows], shape.description

    return call


@pytest.fixture
def refused(read):
    def call(name, content):
        with pytest.raises(DataError) as caught:
            read(name, content)
        return str(caught.value)

    return call


def pairs(examples):
    return [(e.prompt, e.completion) for e in examples]


def turns(example):
    return [(m["role"], m["content"]) for m in example.messages]


def test_a_list_beside_the_columns_of_the_only_row_is_a_part_of_it(read):
    row = {"prompt": "q", "completion": "a"}
    for more in ([{"title": "t", "text": "d"}], [{"prompt": "x", "completion": "y"}]):
        examples, said = read("r.jsonl", json.dumps({**row, "documents": more}))
        assert pairs(examples) == [("q", "a")]
        assert "not used: 'documents'" in said
    found = {"text": "Oslo is cold", "entities": [{"text": "Oslo", "label": "LOC"}]}
    assert [e.text for e in read("r.json", json.dumps(found))[0]] == ["Oslo is cold"]
    examples, _ = read("r.json", json.dumps({"text": "about the set", "data": [row, row]}))
    assert pairs(examples) == [("q", "a")] * 2


def test_bedrock_s_parts_and_its_system_list(read):
    messages = [
        {"role": "user", "content": [{"text": "q"}]},
        {"role": "assistant", "content": [{"type": None, "text": "a"}]},
    ]
    examples, _ = read("r.jsonl", json.dumps({"messages": messages}))
    assert turns(examples[0]) == [("user", "q"), ("assistant", "a")]
    (row,) = read("r.jsonl", json.dumps({"extra": [{"text": "s"}], "messages": messages}))[0]
    assert turns(row) == [("user", "q"), ("assistant", "a")]


def test_a_header_with_commas_in_quotes(read):
    examples, _ = read("r.csv", '"prompt";"completion";"notes, if any"\nq;1,5;\n')
    assert pairs(examples) == [("q", "1,5")]


def test_one_part_without_its_list(read):
    part = {"type": "text", "text": "q"}
    messages = [{"role": "user", "content": part}, {"role": "assistant", "content": "a"}]
    assert turns(read("r.jsonl", json.dumps({"messages": messages}))[0][0])[0] == ("user", "q")


def test_pandas_columns_with_an_index_of_names(read):
    frame = pandas.DataFrame({"prompt": ["q", "r"], "completion": ["a", "b"]}, index=["x", "y"])
    assert pairs(read("r.json", frame.to_json())[0]) == [("q", "a"), ("r", "b")]


def test_a_table_that_excel_saved_as_text(read):
    examples, _ = read("r.txt", 'prompt\tcompletion\r\nq\t"a ""x"""\r\n')
    assert pairs(examples) == [("q", 'a "x"')]
    examples, _ = read("r.txt", "text, prompt\nroses, red\n")
    assert [e.text for e in examples] == ["text, prompt", "roses, red"]


def test_lists_and_objects_as_answers_are_said(read):
    for answer in (["a", "b"], {"label": "x"}):
        row = json.dumps({"prompt": "q", "completion": answer})
        examples, said = read("r.jsonl", f"{row}\n{row}\n")
        assert json.loads(examples[0].completion) == answer
        assert "'completion': lists and objects as JSON text" in said


def test_a_row_that_is_one_message(refused):
    for name, content in (
        ("r.jsonl", '{"role": "user", "text": "q"}\n{"role": "assistant", "text": "a"}\n'),
        ("r.csv", "id,role,content\n1,user,q\n1,assistant,a\n"),
    ):
        said = refused(name, content)
        assert f"{name}:{2 if name == 'r.csv' else 1}: each row is one message ('role'" in said


def test_a_header_in_the_middle(refused):
    said = refused("r.csv", "prompt,completion\nq,a\nprompt,completion\nr,b\n")
    assert "r.csv:3: the header again" in said


def test_markdown_tables(read, refused):
    said = refused("r.csv", "| prompt | completion |\n|:---|---:|\n| q | a |\n")
    assert "r.csv:2: the line under the header of a Markdown table" in said
    assert pairs(read("r.csv", "prompt|completion\nq|a\n-|-\n")[0]) == [("q", "a"), ("-", "-")]


@pytest.mark.parametrize(("codec", "name"), [("utf-16-le", "LE"), ("utf-16-be", "BE")])
def test_utf_16_without_a_mark(codec, name, read, refused):
    for file, text in (("r.jsonl", ROW), ("r.csv", "prompt,completion\nq,a\n")):
        said = refused(file, text.encode(codec))
        assert f"{file}:1: not UTF-8" in said
        assert f"iconv -f UTF-16{name} " in said
        # what iconv makes of it
        assert pairs(read(file, text.encode(codec).decode(f"UTF-16{name}"))[0]) == [("q", "a")]


@pytest.mark.parametrize(
    ("content", "where", "advice"),
    [
        (ROW.encode() + b"\0\0\0", 2, "zero bytes"),
        ("{“prompt”: “q”}\n", 1, "straight quotes"),
        ('{"prompt": "C:\\dir", "completion": "a"}\n', 1, "json.dumps(row)"),
        (f"[{ROW}]\n[{ROW}]\n", 3, "the rows of all lists into one"),
        ('{"messages": []}', 1, "no message has the role 'assistant'"),
        ('{"conversation": "Human: q"}', 1, 'such as [{"role": "user"'),
        ('{"messages": [{"user": "q"}]}', 1, 'written {"role": "user", "content"'),
    ],
)
def test_errors_say_what_to_do(content, where, advice, refused):
    said = refused("r.jsonl", content)
    assert f"r.jsonl:{where}: " in said
    assert advice in said


def test_the_mapping_that_is_advised_goes_into_an_object(read, refused):
    for row in (
        {"data": {"prompt": "q", "completion": "a"}},
        {"translation": {"en": "q", "de": "a"}},
    ):
        content = f"{json.dumps(row)}\n" * 2
        found = re.search(r"--prompt '([^']*)' --completion '([^']*)'", refused("r.jsonl", content))
        examples, _ = read("r.jsonl", content, prompt=found[1], completion=found[2])
        assert pairs(examples) == [("q", "a")] * 2


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "bad", "label": 0},
        {"prompt": "q", "completion": "bad", "desirable": False},
        {"instruction": "q", "output": "bad", "kto_tag": 0},
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "bad"},
            ],
            "label": False,
        },
    ],
)
def test_an_answer_that_is_marked_as_bad_is_never_taught(row, refused):
    assert "marks a bad answer" in refused("rows.jsonl", json.dumps(row) + "\n")


def test_a_class_beside_a_conversation_is_no_mark(read):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    examples, _ = read("rows.jsonl", json.dumps({"messages": messages, "label": 0}) + "\n")
    assert turns(examples[0]) == [("user", "q"), ("assistant", "a")]
