"""The training loop: one function that reads from top to bottom.

Full fine-tuning is the same loop on a model without an adapter; what varies arrives as
arguments, and what belongs to one run (schedule, optimizer, checkpoints) is its `Course`.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from lorakit.data.batches import Batch
from lorakit.training.course import Course, Event, FitResult
from lorakit.training.loss import Loss
from lorakit.training.spec import TrainSpec

__all__ = ["Event", "FitResult", "fit"]


def fit(
    model: nn.Module,
    batches_of: Callable[[int], Sequence[Batch]],
    steps: int,
    spec: TrainSpec,
    *,
    loss: Loss,
    learning_rate: float,
    evaluate: Callable[[], float] | None = None,
    report: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    folder: Path | None = None,
    run: str = "",
    resume: bool = False,
) -> FitResult:
    """Train the model's trainable parameters and leave those that the spec keeps in it.

    Args:
        model: frozen but for what is to be trained; in the mode it should train in.
        batches_of: the micro-batches of step i (from 0); it must depend on i alone.
        steps: how many steps the schedule spans.
        spec: the schedule.
        loss: gives (nll_sum in nats, loss-bearing tokens) of a batch.
        learning_rate: the peak.
        evaluate: held-out loss in nats per token; without it the last parameters are kept.
        report: called with one flat mapping after each step, evaluation and checkpoint.
        should_stop: asked between steps; where true, a checkpoint is written and the run ends.
        folder: where checkpoints and a diverged batch go; None keeps nothing on disk.
        run: hash of what the run depends on, kept in its checkpoints.
        resume: go on from the newest checkpoint in `folder`, if there is one.

    Raises:
        DivergedError: a loss or gradient is not finite (the batch is saved, the parameters are
            those of the step before), or after the first step nothing moved or the base did.
        InterruptedRunError: `should_stop` said so.
    """
    course = Course(
        model,
        model.parameters(),
        batches_of,
        steps,
        spec,
        learning_rate=learning_rate,
        evaluate=evaluate,
        report=report,
        should_stop=should_stop,
        folder=folder,
        run=run,
        resume=resume,
    )
    while not course.over:
        started = time.perf_counter()
        torch.manual_seed(course.seed)
        batches, nll, count = course.batches(), 0.0, 0
        for batch in batches:
            nll_sum, tokens = loss(model, batch)
            nll_sum.backward()
            nll, count = nll + float(nll_sum.detach()), count + tokens
        course.advance(nll, count, batches, time.perf_counter() - started)
    return course.finish()
