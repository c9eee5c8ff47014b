"""The training loop: one function that reads from top to bottom.

Full fine-tuning is the same loop on a model without an adapter; what varies arrives as
arguments, and what belongs to one run (schedule, optimizer, checkpoints) is its `Course`.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from lorakit.data.batches import Batch
from lorakit.lora import lora_layers
from lorakit.training.course import Course
from lorakit.training.graphs import gradients_of
from lorakit.training.guard import FirstStepGuard
from lorakit.training.loss import Loss
from lorakit.training.moments import of_embeddings
from lorakit.training.rates import rates_of
from lorakit.training.schedule import Checkpoints, FitResult, Moments, Observers, Schedule


def fit(
    model: nn.Module,
    batches_of: Callable[[int], Sequence[Batch]],
    schedule: Schedule,
    *,
    loss: Loss,
    observers: Observers | None = None,
    checkpoints: Checkpoints | None = None,
    moments: Moments | None = None,
    keep_moments: bool = False,
) -> FitResult:
    """Train the model's trainable parameters and leave those that the spec keeps in it.

    Args:
        model: frozen but for what is to be trained.
        batches_of: the micro-batches of step i (from 0); it must depend on i alone.
        schedule: steps, peak rate and the rest of the schedule.
        loss: gives (nll_sum in nats, supervised tokens) of a batch by this model.
        observers: held-out loss, reports, and whether to stop.
        checkpoints: where the run is kept, and whether to go on from there.
        moments: AdamW's, of the run that this one goes on from.
        keep_moments: give back the moments of the parameters that are kept.

    Raises:
        DivergedError: a loss or gradient is not finite (the batch is saved, the parameters are
            those of the step before), or after the first step nothing moved or the base did.
        InterruptedRunError: `should_stop` said so.
    """
    course = Course(
        model.parameters(),
        batches_of,
        schedule,
        observers or Observers(),
        checkpoints or Checkpoints(),
        guard=partial(FirstStepGuard, model),
        moments=moments,
        keep_moments=keep_moments,
        wide=of_embeddings(model.modules()),
        rates=rates_of(lora_layers(model).values(), schedule.spec),
    )
    course.begin()
    gradients = gradients_of(loss, next(model.parameters()).device)
    while not course.over:
        started = time.perf_counter()
        torch.manual_seed(course.seed)
        nll, count = 0.0, 0.0
        batches = course.batches()
        for batch in batches:
            nats, tokens = gradients(batch)
            nll, count = nll + nats, count + tokens
        course.advance(nll, count, batches, time.perf_counter() - started)
    return course.finish()
