"""Files and folders that appear whole or not at all."""

import errno
import json
import os
import signal
import sys

import pytest

from lorakit.errors import OutputError
from lorakit.files.exchange import exchange
from lorakit.files.header import DamagedTensorsError, format_header, parse_header, read_header
from lorakit.files.whole import remove_folder, write_file, write_folder, write_json, write_text


def everything(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there_and_names_it(tmp_path, monkeypatch, call, number):
    file = write_json(tmp_path / "a.json", {"old": 1})

    def refuse(*_, **__):
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


def test_a_file_in_a_folder_is_not_named_by_its_hidden_path(tmp_path, monkeypatch):
    def fill(partial):
        monkeypatch.setattr(os, "fsync", refuse)
        write_text(partial / "a", "new")

    def refuse(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=rf"^cannot write the adapter {tmp_path}/out: No space"):
        write_folder(tmp_path / "out", fill, what="adapter")
    assert everything(tmp_path) == set()


def killed_at(call, number, act):
    """Run `act` in a process that is killed before its `number`-th call of a function of `os`.

    Returns whether it was killed; False where it makes fewer calls and came to its end.
    """
    child = os.fork()
    if child == 0:
        real, left = getattr(os, call), [number]

        def counted(*given, **named):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        setattr(os, call, counted)
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # torch has threads
@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("call", ["replace", "fsync", "open"])
def test_a_kill_at_any_call_leaves_the_old_folder_or_the_new_one(
    tmp_path, monkeypatch, call, can_exchange
):
    if not can_exchange:
        monkeypatch.setattr("lorakit.files.whole.exchange", lambda one, other: False)
    contents = set()
    for number in range(1, 100):
        parent = tmp_path / str(number)
        write_folder(parent / "out", lambda partial: write_text(partial / "a", "old"))

        def replace(parent=parent):
            write_folder(
                parent / "out", lambda partial: write_text(partial / "a", "new"), overwrite=True
            )

        killed = killed_at(call, number, replace)
        if can_exchange and sys.platform == "linux":
            contents.add((parent / "out" / "a").read_text())  # at every instant
        write_text(parent / "other", "")  # whoever writes here next sweeps
        assert (parent / "out" / "a").read_text() in ("old", "new")
        assert everything(parent) == {"out", "out/a", "other"}
        if not killed:
            break
    assert not killed
    assert number > 1  # it did call it
    assert (parent / "out" / "a").read_text() == "new"
    assert contents <= {"old", "new"}


def test_a_living_writer_is_not_swept(tmp_path):
    def fill(partial):
        write_text(tmp_path / "out-2", "a second writer in the same parent")
        partial.write_text("whole")

    write_file(tmp_path / "out", fill)
    assert (tmp_path / "out").read_text() == "whole"
    assert everything(tmp_path) == {"out", "out-2"}


def test_names_are_exchanged_only_where_both_are_there(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    write_text(one / "a", "1")
    if sys.platform == "linux":
        with pytest.raises(FileNotFoundError):
            exchange(one, other)
    other.mkdir()
    if exchange(one, other):
        assert (other / "a").read_text() == "1"
        assert everything(one) == set()


def test_a_folder_is_removed_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    write_folder(folder, lambda partial: write_text(partial / "a", "old"))

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OutputError, match=r"cannot remove .*out: No space left"):
            remove_folder(folder)
    assert everything(tmp_path) == {"out", "out/a"}
    remove_folder(folder)
    assert everything(tmp_path) == set()
