"""What was freed goes back to the system: for models whose bytes are counted, those held packed.

glibc takes the size from which a piece of memory is the system's own (and goes back when it is freed) from what was
freed before: after the large matrices of loading it is 32 MB, and what comes after lies in one heap, in which
whatever lives long keeps the holes below it. Measured with a random llama of 6 blocks of width 2048 in nf4, a step of
1,024 tokens at rank 16: 1,333 MB at most with glibc's own rule and 1,170 MB with this one; SmolLM2-135M takes the same
processor time for a step.
"""

import ctypes
import os
import sys

# Tensors of small models lie below: fresh pages cost time, and theirs are few.
_OWN_PIECE = 4 << 20
# Of the heap's end so much stays, so that it does not shrink and grow in each step.
_KEPT_END = 32 << 20
# mallopt's numbers, malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def give_back_large_pieces() -> None:
    """From now on pieces of 4 MB go back as they are freed; nothing where the user chose, or without glibc."""
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _VARIABLES):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _OWN_PIECE)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_END)
