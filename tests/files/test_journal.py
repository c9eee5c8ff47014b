"""A journal: whole lines after any end, one writer at a time."""

import pytest

from lorakit.errors import OutputError
from lorakit.files.journal import Journal, whole_lines


def test_lines_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "deep" / "journal"
    lines = ["first", "", "ö" * 70_000, "\u2028 inside"]
    for line in lines:
        with Journal(path) as journal:
            journal.append(line)
    assert list(whole_lines(path)) == lines


@pytest.mark.parametrize("torn", [b"half", b"h", b"x" * 200_000, "ö".encode()[:1]])
def test_what_a_kill_left_of_a_line_is_removed(tmp_path, torn):
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.append("whole")
    with path.open("ab") as file:
        file.write(torn)
    assert list(whole_lines(path)) == ["whole"]
    with Journal(path) as journal:
        journal.append("next")
    assert path.read_bytes() == b"whole\nnext\n"


def test_a_first_line_that_was_never_ended_leaves_an_empty_file(tmp_path):
    path = tmp_path / "journal"
    path.write_bytes(b"x" * 100_000)
    Journal(path).close()
    assert path.read_bytes() == b""


def test_one_process_writes_at_a_time(tmp_path):
    path = tmp_path / "journal"
    with Journal(path) as journal:
        with pytest.raises(OutputError, match="being written by another process"):
            Journal(path)
        journal.append("mine")
    with Journal(path) as journal:
        journal.remove()
    assert not list(tmp_path.iterdir())


def test_what_the_system_refuses_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write the answers"):
        Journal(tmp_path / "file" / "journal", what="answers")
