"""Files and folders that appear whole or not at all."""

import errno
import json
import os

import pytest

from lorakit.errors import OutputError
from lorakit.files.header import DamagedTensorsError, format_header, parse_header, read_header
from lorakit.files.whole import write_file, write_folder, write_json, write_text


def everything(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there_and_names_it(tmp_path, monkeypatch, call, number):
    file = write_json(tmp_path / "a.json", {"old": 1})

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    if call == "write":
        monkeypatch.setattr("pathlib.Path.write_text", refuse)
    else:
        monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OutputError, match=r"cannot write the file .*a\.json") as failed:
        write_json(file, {"new": 2})
    monkeypatch.undo()
    assert os.strerror(number) in str(failed.value)
    assert ("make room" in str(failed.value)) == (number == errno.ENOSPC)
    assert json.loads(file.read_text()) == {"old": 1}
    assert everything(tmp_path) == {"a.json"}


def test_a_folder_that_fails_leaves_what_was_there(tmp_path):
    folder = tmp_path / "out"
    write_folder(folder, lambda partial: write_text(partial / "a", "old"))

    def half(partial):
        (partial / "a").write_text("new")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="is not empty"):
        write_folder(folder, half)
    with pytest.raises(OutputError, match="No space left on device; make room"):
        write_folder(folder, half, overwrite=True, what="adapter")
    assert (folder / "a").read_text() == "old"
    assert everything(tmp_path) == {"out", "out/a"}
    write_folder(folder, lambda partial: write_text(partial / "b", "new"), overwrite=True)
    assert everything(tmp_path) == {"out", "out/b"}


def test_other_errors_go_through_and_leave_nothing(tmp_path):
    def wrong(partial):
        partial.write_text("half")
        raise KeyError("a fault of the caller")

    with pytest.raises(KeyError):
        write_file(tmp_path / "a", wrong)
    assert everything(tmp_path) == set()


def test_a_file_is_not_replaced_unasked(tmp_path):
    write_text(tmp_path / "a", "old")
    with pytest.raises(OutputError, match="exists: give the export another name"):
        write_file(tmp_path / "a", lambda partial: partial.write_text("new"), what="export")
    assert (tmp_path / "a").read_text() == "old"


def test_a_header_is_read_as_it_was_written(tmp_path):
    planned = [("a", "F32", (2, 3), 24), ("b", "BF16", (), 2)]
    content = format_header(planned) + bytes(26)
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    entries = read_header(file)
    assert entries == parse_header(content)
    assert [(n, e.dtype, e.shape, e.end - e.start) for n, e in entries.items()] == planned
    assert entries["b"].end == len(content)


@pytest.mark.parametrize("cut", [0, 5, 8, 20, -1])
def test_a_file_that_was_truncated_is_said_to_be_damaged(tmp_path, cut):
    content = format_header([("a", "F32", (2,), 8)]) + bytes(8)
    file = tmp_path / "a.safetensors"
    file.write_bytes(content[:cut])
    with pytest.raises(DamagedTensorsError):
        read_header(file)
    with pytest.raises(DamagedTensorsError):
        parse_header(content + b"more")
