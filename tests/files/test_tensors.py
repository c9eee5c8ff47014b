"""Tensors as views of what was read, against safetensors' own reader."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lorakit.errors import AdapterError
from lorakit.files.tensors import read_tensors_at_once


def written(folder, header, numbers):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "a.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
    return file


@given(
    kinds=st.lists(
        st.tuples(
            st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
            st.lists(st.integers(1, 5), min_size=0, max_size=4),
        ),
        max_size=6,
    )
)
def test_views_are_what_safetensors_reads(kinds, tmp_path_factory):
    file = tmp_path_factory.mktemp("t") / "a.safetensors"
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"t{i}": torch.randn(shape, generator=generator).to(dtype)
        for i, (dtype, shape) in enumerate(kinds)
    }
    save_file(tensors, file, metadata={"format": "pt"})
    got, expected = read_tensors_at_once(file), load_file(file)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor)


def test_the_file_may_change_afterwards(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"t": torch.ones(1000)}, file)
    got = read_tensors_at_once(file)["t"]
    file.write_bytes(b"")
    assert torch.equal(got, torch.ones(1000))


def test_kinds_of_numbers_that_are_no_floats_are_left_to_safetensors(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"t": torch.arange(5), "u": torch.ones(2)}, file)
    assert torch.equal(read_tensors_at_once(file)["t"], torch.arange(5))


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "numbers"),
    [
        ({"t": ONE}, b"\0" * 4),
        ({"t": ONE | {"data_offsets": [-8, 0]}}, b"\0" * 8),
        ({"t": ONE | {"shape": [3]}}, b"\0" * 12),
        ({"t": ONE | {"shape": [-2]}}, b"\0" * 8),
        ({"t": ONE | {"data_offsets": [0]}}, b"\0" * 8),
        ({"t": ONE | {"data_offsets": ["0", "8"]}}, b"\0" * 8),
        ({"t": [1, 2]}, b"\0" * 8),
        ([1, 2], b"\0" * 8),
        (b"no json", b"\0" * 8),
        (b"\xff\xfe", b"\0" * 8),
        ({"t": ONE | {"dtype": ["F32"]}}, b"\0" * 8),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, header, numbers):
    with pytest.raises(AdapterError, match="truncated or no safetensors"):
        read_tensors_at_once(written(tmp_path, header, numbers))
