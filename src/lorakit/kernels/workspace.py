"""Memory that compiled kernels work in: one piece, shared by all calls of a Python thread.

What lies in it is of no use after the call. Asking the system for it at each call would cost more time than
much of what is done in it.
"""

import threading

import torch

LINE = 16
"""float32 elements of a cache line: places in shared memory begin at multiples of it."""


class Workspace(threading.local):
    """The largest piece that one call of this Python thread needed."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def of(self, size: int) -> int:
        """The address of memory for so many float32 elements, at the beginning of a cache line."""
        if self._memory.numel() < size + LINE:
            self._memory = torch.empty(0)  # given back before more is asked for
            self._memory = torch.empty(size + LINE, dtype=torch.float32, device="cpu")
        address = self._memory.data_ptr()
        return address + -address % (LINE * self._memory.element_size())

    def forget(self) -> None:
        """Give it back; the next call asks for it anew."""
        self._memory = torch.empty(0)


workspace = Workspace()
