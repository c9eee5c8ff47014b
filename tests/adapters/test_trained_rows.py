"""What an adapter records of the rows it was trained on, and where the record goes with it."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lorakit
from families import tiny
from lorakit.adapters import trained_rows
from lorakit.adapters.attached import attached_rows, remember_rows
from lorakit.adapters.pairs import read_stored, write_stored
from lorakit.adapters.shrink import shrink
from lorakit.adapters.specs import ShrinkSpec
from lorakit.adapters.store import Store, content_id
from lorakit.adapters.trained_rows import TRAINED_ROWS, TrainedRows, read_trained_rows


def hashes(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.uint32)


def adapter(folder, *rows: int):
    model = tiny("llama")
    lorakit.attach(model, lorakit.LoraSpec(rank=2, targets=("q_proj",)), seed=len(rows))
    if rows:
        remember_rows(model, TrainedRows.of(hashes(*rows)))
    return lorakit.save_adapter(model, folder)


def recorded(folder) -> list[int] | None:
    rows, why = read_trained_rows(folder, lorakit.read_adapter(folder).tensors_sha256)
    assert why == ""
    return None if rows is None else rows.hashes.tolist()


LARGE = 2**32 - 1


def test_rows_are_sorted_and_each_is_there_once():
    rows = TrainedRows.of(hashes(LARGE, 5, 2, 5, 5))
    assert (rows.hashes.tolist(), rows.rows, rows.are_known) == ([2, 5, LARGE], 3, True)
    assert rows.new(hashes(5, 6, LARGE, 6)).tolist() == [False, True, False, True]
    assert (rows | TrainedRows.of(hashes(6, 5))).hashes.tolist() == [2, 5, 6, LARGE]


def test_what_is_saved_is_loaded_and_saved_again(tmp_path):
    folder = adapter(tmp_path / "one", LARGE, 7, 7)
    assert recorded(folder) == [7, LARGE]
    model = tiny("llama")
    lorakit.load_adapter(model, folder)
    again = lorakit.save_adapter(model, tmp_path / "again")
    assert recorded(again) == [7, LARGE]
    assert (again / TRAINED_ROWS).read_bytes() == (folder / TRAINED_ROWS).read_bytes()


def test_the_store_keeps_it(tmp_path):
    store = Store(tmp_path / "store")
    first = store.add(adapter(tmp_path / "one", 1, 2), "mails").entry
    assert recorded(first.folder) == [1, 2]
    assert content_id(adapter(tmp_path / "two", 1, 3)) != content_id(first.folder)


def test_what_is_made_of_several_was_trained_on_the_rows_of_all(tmp_path):
    one, two, none = (
        adapter(tmp_path / name, *rows)
        for name, rows in (("one", (1, 2)), ("two", (2, LARGE)), ("none", ()))
    )
    out = tmp_path / "sum"
    lorakit.combine([one, two, none], out=out)
    assert recorded(out) == [1, 2, LARGE]
    lorakit.combine([none, none], out=tmp_path / "nothing")
    assert recorded(tmp_path / "nothing") is None


def test_a_smaller_adapter_was_trained_on_the_same_rows(tmp_path):
    small = shrink(read_stored(adapter(tmp_path / "one", 4, LARGE)), ShrinkSpec(rank=1))
    assert recorded(write_stored(tmp_path / "small", small.adapter)) == [4, LARGE]


def test_more_rows_than_it_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr(trained_rows, "MOST", 3)
    folder = adapter(tmp_path / "one", 1, 2, 3, 4)
    rows, why = read_trained_rows(folder, lorakit.read_adapter(folder).tensors_sha256)
    assert (rows.rows, len(rows.hashes), rows.are_known, why) == (4, 0, False, "")
    assert not (TrainedRows.of(hashes(1)) | rows).are_known
    assert not (TrainedRows.of(hashes(1, 2)) | TrainedRows.of(hashes(3, 4))).are_known


def test_a_million_rows_take_four_mebibytes(tmp_path):
    rows = TrainedRows.of(np.arange(trained_rows.MOST + 1, dtype=np.uint32))
    assert (len(rows.hashes), rows.rows) == (0, trained_rows.MOST + 1)
    model = tiny("llama")
    lorakit.attach(model, lorakit.LoraSpec(rank=2, targets=("q_proj",)))
    remember_rows(model, TrainedRows.of(np.arange(trained_rows.MOST, dtype=np.uint32)))
    folder = lorakit.save_adapter(model, tmp_path / "large")
    assert 2**22 <= (folder / TRAINED_ROWS).stat().st_size < 2**22 + 1000


@pytest.mark.parametrize("how", ["truncated", "other tensors", "other keys", "wrong count"])
def test_a_record_that_is_not_this_adapters_is_not_used_and_says_why(tmp_path, how):
    folder = adapter(tmp_path / "one", 1, 2)
    file = folder / TRAINED_ROWS
    match how:
        case "truncated":
            file.write_bytes(file.read_bytes()[:-4])
        case "other tensors":
            shutil.copy(adapter(tmp_path / "two", 1, 2, 3) / TRAINED_ROWS, file)
        case "other keys":
            save_file({"rows": torch.tensor(2)}, file)
        case _:
            save_file(load_file(file) | {"rows": torch.tensor(5)}, file)
    rows, why = read_trained_rows(folder, lorakit.read_adapter(folder).tensors_sha256)
    assert rows is None
    assert str(file) in why
    model = tiny("llama")
    lorakit.load_adapter(model, folder)  # the adapter itself is whole
    assert attached_rows(model) == (None, why)
