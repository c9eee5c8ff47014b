"""Training or evaluation mode of a model for a while; every module's own mode comes back."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode within the block."""
    training: list[nn.Module] = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def dropping(model: Any) -> Iterator[None]:
    """Training mode within the block."""
    still: list[nn.Module] = [module for module in model.modules() if not module.training]
    model.train()
    try:
        yield
    finally:
        for module in still:
            module.training = False
