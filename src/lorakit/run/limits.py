"""Limits of libraries that must be set before the library first works; imports nothing heavy."""

import ctypes
import gc
import os
import sys

# oneDNN keeps the compiled form of every shape of product that it met, 1,024 of them and about a
# megabyte each. Sequences laid end to end give every batch its own number of tokens, so hardly one
# is met again, while within a batch all blocks share about twenty. Measured with SmolLM2-135M in
# bfloat16: 1.50 GB without the limit and 1.34 GB with it after 4 steps, in the same time.
_PRIMITIVES = "64"


def limit_caches() -> None:
    """Keep oneDNN's cache small in this process, unless the user has set it."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _PRIMITIVES)


def give_back_memory() -> None:
    """Hand what was freed back to the system; glibc keeps much of it otherwise.

    For the turn from one kind of work to another in a process whose peak is watched; does nothing
    where there is no glibc.
    """
    gc.collect()
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
