"""The instruction sets of the compiled kernels, for tests that run once for each that this machine has."""

from typing import Any

import pytest
import torch

from lorakit.kernels import native


def sets_with(kernel: str) -> list[Any]:
    """Parameters for a fixture: every set that may have this kernel, skipped with a reason where it is not."""
    found = native.library()
    params = []
    for name in ("avx2", "avx512bf16"):
        if isinstance(found, str):
            why = found
        elif name not in native.usable(found):
            why = f"this machine or this build has no {name}"
        elif not hasattr(found.code, f"lk_{name}_{kernel}"):
            why = f"{name} has no {kernel}"
        else:
            why = ""
        params.append(pytest.param(name, marks=pytest.mark.skipif(bool(why), reason=why)))
    return params


def format_of(name: str) -> torch.dtype:
    """The number format of a set."""
    return native.FORMATS[name]


def used(monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    """The set, forced."""
    monkeypatch.setenv(native.VARIABLE, name)
    return name
