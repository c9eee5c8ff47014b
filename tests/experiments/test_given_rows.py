"""Rows in memory that an experiment's trials read from its own folder."""

import json
from pathlib import Path

import pytest

from lorakit.errors import DataError, OutputError
from lorakit.experiments.sources import given_rows

ROWS = [{"text": "one"}, {"text": "zwei ü"}]


def begin(given):
    """What a command does before its runner is made."""
    given.folder.mkdir(parents=True)
    (given.folder / "config.yaml").write_text("{}")
    given.write()


def test_they_lie_in_the_folder_once_it_is_there(tmp_path):
    given = given_rows(ROWS, ROWS[:1], tmp_path / "run", {"seeds": 1})
    assert not (tmp_path / "run").exists()
    begin(given)
    (source,) = given.options["data"]
    lines = Path(source).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    (held_out,) = given.options["eval_data"]
    assert source != held_out
    assert given.options["resume"] is False
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    assert given_rows(ROWS, ROWS[:1], tmp_path / "run", {}).options["resume"] is True


def test_other_rows_are_not_taken_for_the_same(tmp_path):
    begin(given_rows(ROWS, None, tmp_path / "run", {}))
    with pytest.raises(OutputError, match="other rows than the rows you gave"):
        given_rows(ROWS[:1], None, tmp_path / "run", {})


def test_an_error_names_the_row_and_what_was_not_begun_is_gone(tmp_path):
    given = given_rows(ROWS, ROWS, tmp_path / "run", {})
    begin(given)
    (source,), (held_out,) = given.options["data"], given.options["eval_data"]
    with pytest.raises(DataError, match=r"^row 2 of the rows you gave: 'text' is empty$"):  # noqa: SIM117
        with given.naming_rows():
            raise DataError(f"{source}:2: 'text' is empty")
    (given.folder / "config.yaml").unlink()
    with pytest.raises(DataError, match=r"^row 1 of the held-out rows you gave: "):  # noqa: SIM117
        with given.naming_rows():
            raise DataError(f"{held_out}:1: broken")
    assert list(given.folder.iterdir()) == []


def test_a_path_stays_a_path(tmp_path):
    given = given_rows("rows.jsonl", tmp_path / "x.csv", tmp_path / "run", {})
    assert given.options["data"] == ("rows.jsonl",)
    assert given.options["eval_data"] == (str(tmp_path / "x.csv"),)
    assert not given.texts


def test_a_value_that_no_file_can_hold(tmp_path):
    with pytest.raises(DataError, match=r"row 2 of the rows you gave: .*set"):
        given_rows([{"text": "a"}, {"text": {1, 2}}], None, tmp_path / "run", {})
