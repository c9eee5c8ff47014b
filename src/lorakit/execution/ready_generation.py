"""A model made ready to generate: its settings, mode, head and random numbers, and all of it put back."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from lorakit.execution.modes import evaluating
from lorakit.execution.waiting import watch
from lorakit.models.quiet import quiet


@contextlib.contextmanager
def ready_to_generate(model: Any, settings: Any) -> Iterator[None]:
    """Evaluation mode and these settings alone; everything comes back.

    The settings are set on the model too, because transformers fills what they leave open (a
    repetition penalty, for one) from the model's.
    """
    declared = model.generation_config
    model.generation_config = settings
    watch()
    try:
        with evaluating(model), _dense_head(model), quiet():
            yield
    finally:
        model.generation_config = declared


@contextlib.contextmanager
def _dense_head(model: Any) -> Iterator[None]:
    """Within the block the output head gets the last positions as a tensor of their own.

    transformers hands it a view of all positions. torch cannot fold the batch of such a view into
    the rows of one product, takes a batch of products, and oneDNN copies the weight for each of
    them: 16 prompts at SmolLM2-135M's head took .95 GB for a moment (bfloat16, torch 2.13).
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(
        lambda _, given: (given[0].contiguous(), *given[1:]) if given else None
    )
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def seeded(seed: int | None, model: Any) -> Iterator[None]:
    """Within the block random numbers start from the seed; the global generators come back."""
    if seed is None:
        yield
        return
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
