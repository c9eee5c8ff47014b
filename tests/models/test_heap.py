"""Memory of a process that holds a packed base: large pieces are the system's own."""

import os
import subprocess
import sys

import pytest

from families import saved

PROGRAM = """
import ctypes, sys
import torch
import lorakit
from lorakit.models import quantized

class Found(ctypes.Structure):  # mallinfo2, malloc.h
    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

mallinfo = getattr(ctypes.CDLL(None), "mallinfo2")
mallinfo.restype = Found

def apart():
    '''Of three pieces of 6 MB those that are the system's own.'''
    freed = torch.empty(24 << 20, dtype=torch.uint8)
    del freed  # by glibc's own rule only pieces above 24 MB from here on
    before = mallinfo().hblks
    held = [torch.empty(6 << 20, dtype=torch.uint8) for _ in range(3)]
    return mallinfo().hblks - before

read, found = quantized.read, []
def watched(*given):
    found.append(apart())
    return read(*given)
quantized.read = watched
print(apart())
lorakit.load_model(sys.argv[1], dtype="bfloat16", device="cpu", base_dtype="nf4")
print(*found, apart())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_large_pieces_are_apart_while_a_base_is_packed(tmp_path):
    folder = saved(tmp_path / "model")
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, env=own
    )
    if "mallinfo2" in run.stderr:
        pytest.skip("no glibc 2.33")
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["0", "3", "0"]
