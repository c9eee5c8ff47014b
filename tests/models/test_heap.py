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

class Found(ctypes.Structure):  # mallinfo2, malloc.h
    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

mallinfo = getattr(ctypes.CDLL(None), "mallinfo2")
mallinfo.restype = Found
model, _ = lorakit.load_model(sys.argv[1], dtype="bfloat16", device="cpu", base_dtype=sys.argv[2])
freed = torch.empty(24 << 20, dtype=torch.uint8)
del freed  # glibc's own rule: from here on only pieces above 24 MB
before = mallinfo().hblks
held = [torch.empty(6 << 20, dtype=torch.uint8) for _ in range(3)]
print(mallinfo().hblks - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize(("base_dtype", "apart"), [("nf4", 3), ("full", 0)])
def test_large_pieces_are_apart_where_the_base_is_packed(tmp_path, base_dtype, apart):
    folder = saved(tmp_path / "model")
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), base_dtype],
        capture_output=True,
        text=True,
        env=own,
    )
    if "mallinfo2" in run.stderr:
        pytest.skip("no glibc 2.33")
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[-1]) == apart
