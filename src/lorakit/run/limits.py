"""Limits of libraries that must be set before the library first works; imports nothing heavy."""

import ctypes
import os
import sys

# oneDNN keeps the compiled form of every shape of product that it met, 1,024 of them, up to half a
# megabyte each. Batches have few sizes (kernels/layout.py) but still some dozens, and within one all
# blocks share about forty shapes. Measured with SmolLM2-135M in bfloat16, 20 steps of 16 E2E rows:
# 1.69 GB and 813 tokens/s without the limit, 1.60 GB and 808 tokens/s with it.
_PRIMITIVES = "64"


def limit_caches() -> None:
    """Keep oneDNN's cache small in this process, unless the user has set it."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _PRIMITIVES)


def give_back_memory() -> None:
    """Hand what was freed back to the system; glibc keeps much of it otherwise.

    For the turn from one kind of work to another in a process whose peak is watched; does nothing
    where there is no glibc.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
