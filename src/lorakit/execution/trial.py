"""Does another way to compute give the answer of the model's own code? Asked here, and nowhere else.

Whether sequences can be packed, whether the head is a plain matrix, whether fused blocks or steps
with a KV cache may be used is found by trying it on a few random tokens, not by a model's name. What
was found is remembered for the model (see runnable.py).
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lorakit.errors import ModelError

_log = logging.getLogger("lorakit.execution")
# What another way may fail with where a model is not what it seems to be.
FAILURES = (ModelError, TypeError, ValueError, RuntimeError, KeyError, AttributeError)
LENGTHS = (7, 12)
"""Tokens of the two sequences of a trial."""


def tolerance(dtype: torch.dtype) -> float:
    """How far two right ways may differ, as a share of the largest element: rounding alone."""
    return 2e-4 if dtype in (torch.float32, torch.float64) else 5e-2


def random_ids(model: Any, *shape: int) -> Tensor:
    """The same random token ids for every trial, on the model's device."""
    generator = torch.Generator().manual_seed(0)
    rows = model.get_input_embeddings().weight.shape[0]
    return torch.randint(rows, shape, generator=generator).to(model.device)


def positions() -> Tensor:
    """Places in their sequences of the tokens of a trial's two sequences."""
    return torch.cat([torch.arange(n) for n in LENGTHS])


def same_answer(
    model: Any,
    way: str,
    compute: Callable[[], Tensor],
    expected: Tensor | Callable[[], Tensor],
    *,
    close: float | None = None,
) -> bool:
    """Whether `compute` gives `expected`, up to rounding; a failure in it counts as no.

    Args:
        model: for its name and dtype.
        way: what is tried, for the log.
        compute: the other way.
        expected: what the model's own code gives, or a function that computes it (whose failure
            is a failure of the model, and is raised).
        close: the largest difference, as a share of the largest element of `expected`; that of
            `tolerance` if left out.
    """
    name = type(model).__name__
    wanted = (expected() if callable(expected) else expected).float()
    try:
        answer = compute().float()
    except FAILURES as error:
        _log.info("%s, %s: %s", name, way, error)
        return False
    if answer.shape != wanted.shape:
        _log.info("%s, %s: %s in place of %s", name, way, answer.shape, wanted.shape)
        return False
    apart = (answer - wanted).abs().max().item()
    scale = wanted.abs().max().item()
    _log.info("%s, %s: differs by %.1e, of at most %.1e", name, way, apart, scale)
    return apart <= (tolerance(model.dtype) if close is None else close) * scale
