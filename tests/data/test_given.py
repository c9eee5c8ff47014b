"""Rows in memory, read as they are; what a message calls them."""

import datasets
import pandas
import pytest

from lorakit.data import DataSpec, read_rows
from lorakit.data.given import GIVEN_HELD_OUT, GivenRows, as_source
from lorakit.data.table import TokenTable
from lorakit.errors import DataError

ROWS = [{"prompt": f"say {w}", "completion": w[::-1]} for w in ("lamp", "desk", "river")]


@pytest.mark.parametrize(
    "given",
    [
        ROWS,
        tuple(ROWS),
        (row for row in ROWS),
        datasets.Dataset.from_list(ROWS),
        pandas.DataFrame(ROWS),
    ],
    ids=["list", "tuple", "generator", "datasets", "pandas"],
)
def test_the_same_rows_in_every_form_more_than_once(given):
    source = as_source(given)
    for _ in range(2):
        rows = list(read_rows([source]))
        assert [dict(row.fields) for row in rows] == ROWS
        assert [row.origin for row in rows] == [f"row {n} of the rows you gave" for n in (1, 2, 3)]


def test_values_stay_what_they_are():
    row = {"text": "x", "n": 1, "f": 2.5, "none": None, "list": [{"a": 1}]}
    (read,) = read_rows([as_source([row])])
    assert read.fields is row


def test_a_missing_value_of_pandas_is_none():
    frame = pandas.DataFrame({"text": ["a", None], "n": [1.0, float("nan")]})
    rows = [row.fields for row in read_rows([as_source(frame)])]
    assert rows == [{"text": "a", "n": 1.0}, {"text": None, "n": None}]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "the rows you gave: there are no rows in them"),
        (pandas.DataFrame({"text": []}), "the rows you gave: there are no rows in them"),
        (["a"], "row 1 of the rows you gave is no mapping .* it is 'a' .*str"),
        ([ROWS[0], 7], "row 2 of the rows you gave is no mapping .* it is 7 .*int"),
        ([{1: "a"}], "row 1 of the rows you gave: the column 1 is no text"),
        ({"text": ["a"]}, "one mapping .of 'text'., not rows"),
        (7, "a value of type int: give a path"),
        (b"rows", "a value of type bytes"),
        (pandas.Series(["a"]), "a pandas Series; give a DataFrame"),
    ],
)
def test_what_is_no_rows(given, said):
    with pytest.raises(DataError, match=said):
        list(read_rows([as_source(given)]))


def test_held_out_rows_have_a_name_of_their_own():
    with pytest.raises(DataError, match="row 1 of the held-out rows you gave"):
        list(read_rows([as_source(["x"], GIVEN_HELD_OUT)]))


def test_a_table_keeps_the_place_of_rows_in_memory_and_in_files():
    import numpy as np

    from lorakit.data.table import Encoded

    origins = ["row 3 of the rows you gave", "a/b.jsonl:17", "prompt"]
    one, mask = np.zeros(2, np.int32), np.array([0, 1], np.uint8)
    table = TokenTable.build(Encoded(one, mask, origin) for origin in origins)
    assert [row.origin for row in table] == origins


def test_a_spec_takes_them_and_refuses_anything_else():
    assert str(DataSpec(data=(GivenRows(ROWS),)).data[0]) == "the rows you gave"
    with pytest.raises(Exception, match="must be a list of file names"):
        DataSpec(data=(ROWS,))
