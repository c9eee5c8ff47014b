"""The training loop: one function that reads from top to bottom.

Full fine-tuning is the same loop on a model without an adapter; what varies arrives as
arguments.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.data.batches import Batch
from lorakit.errors import DivergedError, InterruptedRunError
from lorakit.training.checkpoint import Progress, flat_copy, load_checkpoint, save_checkpoint
from lorakit.training.guard import FirstStepGuard
from lorakit.training.loss import Loss
from lorakit.training.optimizer import FlatAdamW, learning_rate_at
from lorakit.training.spec import TrainSpec

Event = Mapping[str, Any]


@dataclass(frozen=True)
class FitResult:
    """What a run came to.

    Attributes:
        steps: done, of those planned.
        train_loss: mean over the last tenth of the steps, nats per loss-bearing token.
        eval_loss: of the parameters kept (`TrainSpec.keep`), None without held-out rows.
        eval_loss_before: before the first step.
        best_step: the step whose parameters were kept.
        stopped_early: whether patience ran out.
        tokens, seconds: real tokens trained on, and the time of the steps alone.
        state_bytes: of the optimizer's moments, and of a master copy where there is one.
        notes: what the user should know.
    """

    steps: int
    train_loss: float
    eval_loss: float | None
    eval_loss_before: float | None
    best_step: int
    stopped_early: bool
    tokens: int
    seconds: float
    state_bytes: int
    notes: tuple[str, ...] = field(default=())


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
    optimizer = FlatAdamW(model.parameters(), spec)
    checkpoints = folder / "checkpoints" if folder else None
    eval_every = spec.eval_every or max(1, math.ceil(steps / 4))
    checkpoint_every = spec.checkpoint_every or eval_every
    progress, notes = Progress(), list[str]()
    # A copy of everything trained: none is made where none will be wanted.
    keeps_best = evaluate is not None and spec.keep == "best"
    best = flat_copy(optimizer.flat) if keeps_best else None

    if resume and checkpoints and (found := load_checkpoint(checkpoints, run=run)):
        progress, state, best = found
        optimizer.load_state(state)
        report({"kind": "resume", "step": progress.step})
    elif evaluate:
        progress.before = evaluate()
        report({"kind": "eval", "step": 0, "loss": progress.before})

    def save() -> None:
        if checkpoints:
            path = save_checkpoint(checkpoints, progress, optimizer.state(), best, run=run)
            report({"kind": "checkpoint", "step": progress.step, "path": str(path)})

    guard = FirstStepGuard(model, optimizer.master_of) if progress.step == 0 else None
    stopped_early = False
    while progress.step < steps and not stopped_early:
        step = progress.step
        started = time.perf_counter()
        # Dropout of a step depends on the seed and the step alone, so a resumed run repeats it.
        torch.manual_seed(spec.seed * 1_000_003 + step)
        batches = batches_of(step)
        rate = learning_rate_at(step, steps, learning_rate, spec)
        nll, count = 0.0, 0
        for batch in batches:
            nll_sum, tokens = loss(model, batch)
            nll_sum.backward()
            nll, count = nll + float(nll_sum.detach()), count + tokens
        norm = math.nan
        if math.isfinite(nll):
            norm = optimizer.step(rate, divide_by=count, clip=spec.clip)
        if not math.isfinite(norm):
            raise _diverged(step, nll / count, norm, batches, folder)
        if guard:
            notes += guard.check(rate)
            guard = None
        seen = sum(batch.tokens for batch in batches)
        seconds = time.perf_counter() - started
        progress.step, progress.tokens = step + 1, progress.tokens + seen
        progress.seconds += seconds
        progress.recent = [*progress.recent, (nll, count)][-max(1, steps // 10) :]
        report(
            {
                "kind": "train",
                "step": progress.step,
                "loss": nll / count,
                "learning_rate": rate,
                "grad_norm": norm,
                "tokens": seen,
                "loss_tokens": count,
                "seconds": seconds,
                "real_tokens_per_second": seen / seconds,
            }
        )

        last = progress.step == steps
        if evaluate and (progress.step % eval_every == 0 or last):
            held_out = progress.last_loss = evaluate()
            if progress.best_loss is None or held_out < progress.best_loss:
                progress.best_loss, progress.best_step, progress.stale = held_out, step + 1, 0
                best = flat_copy(optimizer.flat) if keeps_best else None
            else:
                progress.stale += 1
                stopped_early = spec.patience is not None and progress.stale >= spec.patience
            report({"kind": "eval", "step": progress.step, "loss": held_out})
        interrupted = should_stop() and not (last or stopped_early)
        if last or stopped_early or interrupted or progress.step % checkpoint_every == 0:
            save()
        if interrupted:
            raise InterruptedRunError(f"interrupted after step {progress.step} of {steps}")

    if best is not None and progress.best_step is not None:
        with torch.no_grad():
            optimizer.flat.copy_(best)
    return FitResult(
        steps=progress.step,
        train_loss=sum(n for n, _ in progress.recent) / max(1, sum(c for _, c in progress.recent)),
        eval_loss=progress.best_loss if keeps_best else progress.last_loss,
        eval_loss_before=progress.before,
        best_step=(progress.best_step if keeps_best else None) or progress.step,
        stopped_early=stopped_early,
        tokens=progress.tokens,
        seconds=progress.seconds,
        state_bytes=optimizer.state_bytes,
        notes=tuple(notes),
    )


def _diverged(
    step: int, loss: float, norm: float, batches: Sequence[Batch], folder: Path | None
) -> DivergedError:
    rows = [row for batch in batches for row in batch.rows_S]
    saved = ""
    if folder:
        path = folder / f"diverged-step-{step + 1}.json"
        content = {"step": step + 1, "rows": rows, "ids": [b.ids_T.tolist() for b in batches]}
        path.write_text(json.dumps(content) + "\n")
        saved = f"; its batch is in {path}"
    return DivergedError(
        f"step {step + 1}: the loss is {loss:g} and the gradient's norm {norm:g}{saved}. "
        "The parameters are those of the step before. Try a lower --learning-rate, "
        "a longer --warmup, or look at the rows named there"
    )
