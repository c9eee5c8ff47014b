"""One run's own part in training: its schedule, optimizer, evaluations and checkpoints.

A loop asks a course for nothing but its parameters' gradients: `fit` has one course, `fit_jobs` one
for each job. What a run is, it is here, so that a job in company is the run that it would be alone.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.data.batches import Batch
from lorakit.errors import DivergedError, InterruptedRunError
from lorakit.training.checkpoint import Progress, flat_copy, load_checkpoint, save_checkpoint
from lorakit.training.guard import FirstStepGuard
from lorakit.training.optimizer import FlatAdamW, learning_rate_at
from lorakit.training.spec import TrainSpec

Event = Mapping[str, Any]
Look = Callable[[], contextlib.AbstractContextManager[Any]]


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


class Course:
    """A run in progress; a loop gives it gradients, step by step.

    Args:
        model: what the guard looks at, inside `look`.
        parameters: trained; those that need no gradient are left out.
        batches_of: the micro-batches of step i (from 0); it must depend on i alone.
        steps: how many steps the schedule spans.
        spec: the schedule.
        learning_rate: the peak.
        evaluate: held-out loss in nats per token; without it the last parameters are kept.
        report: called with one flat mapping after each step, evaluation and checkpoint.
        should_stop: asked between steps; where true, a checkpoint is written and the run ends.
        folder: where checkpoints and a diverged batch go; None keeps nothing on disk.
        run: hash of what the run depends on, kept in its checkpoints.
        resume: go on from the newest checkpoint in `folder`, if there is one.
        until: rest after this step, with a checkpoint, as if it were the last.
        look: a context in which the model has this run's parameters and no other's.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Iterable[nn.Parameter],
        batches_of: Callable[[int], Sequence[Batch]],
        steps: int,
        spec: TrainSpec,
        *,
        learning_rate: float,
        evaluate: Callable[[], float] | None = None,
        report: Callable[[Event], None] = lambda event: None,
        should_stop: Callable[[], bool] = lambda: False,
        folder: Path | None = None,
        run: str = "",
        resume: bool = False,
        until: int | None = None,
        look: Look = contextlib.nullcontext,
    ) -> None:
        self.steps, self.until = steps, steps if until is None else min(until, steps)
        self._model, self._batches_of, self._spec = model, batches_of, spec
        self._peak, self._evaluate, self._report = learning_rate, evaluate, report
        self._should_stop, self._folder, self._run, self._look = should_stop, folder, run, look
        self._optimizer = FlatAdamW(parameters, spec)
        self._checkpoints = folder / "checkpoints" if folder else None
        self._eval_every = spec.eval_every or max(1, math.ceil(steps / 4))
        self._checkpoint_every = spec.checkpoint_every or self._eval_every
        self._progress, self._notes = Progress(), list[str]()
        # A copy of everything trained: none is made where none will be wanted.
        self._keeps_best = evaluate is not None and spec.keep == "best"
        self._best = flat_copy(self._optimizer.flat) if self._keeps_best else None
        self._stopped_early = False
        self._begin(resume)

    def _begin(self, resume: bool) -> None:
        found = None
        if resume and self._checkpoints:
            found = load_checkpoint(self._checkpoints, run=self._run)
        if found:
            self._progress, state, self._best = found
            self._optimizer.load_state(state)
            self._stopped_early = self._is_stale()
            self._report({"kind": "resume", "step": self._progress.step})
        elif self._evaluate:
            self._progress.before = self._evaluate()
            self._report({"kind": "eval", "step": 0, "loss": self._progress.before})
        self._guard = None
        if self._progress.step == 0:
            with self._look():
                self._guard = FirstStepGuard(self._model, self._optimizer.master_of)

    @property
    def step(self) -> int:
        """Steps done."""
        return self._progress.step

    @property
    def over(self) -> bool:
        """Whether no step is left to do."""
        return self._progress.step >= self.until or self._stopped_early

    @property
    def seed(self) -> int:
        """Of the next step's dropout: it depends on the run's seed and the step alone, so that a
        resumed run repeats it."""
        return self._spec.seed * 1_000_003 + self._progress.step

    def batches(self) -> Sequence[Batch]:
        """The micro-batches of the next step."""
        return self._batches_of(self._progress.step)

    def advance(self, nll: float, count: int, batches: Sequence[Batch], seconds: float) -> None:
        """Take the step whose gradients are there, and all that follows it.

        Args:
            nll: nats of all loss-bearing tokens of the step.
            count: of these tokens: the one division.
            batches: that the gradients came from.
            seconds: that the gradients took.

        Raises:
            DivergedError: a loss or gradient is not finite (the batch is saved, the parameters are
                those of the step before), or after the first step nothing moved or the base did.
            InterruptedRunError: `should_stop` said so.
        """
        progress, spec, step = self._progress, self._spec, self._progress.step
        started = time.perf_counter()
        rate = learning_rate_at(step, self.steps, self._peak, spec)
        norm = math.nan
        if math.isfinite(nll):
            norm = self._optimizer.step(rate, divide_by=count, clip=spec.clip)
        if not math.isfinite(norm):
            raise _diverged(step, nll / count, norm, batches, self._folder)
        if self._guard:
            with self._look():
                self._notes += self._guard.check(rate)
            self._guard = None
        # The update belongs to the step: of full fine-tuning it is a good part.
        seconds += time.perf_counter() - started
        seen = sum(batch.tokens for batch in batches)
        progress.step, progress.tokens = step + 1, progress.tokens + seen
        progress.seconds += seconds
        progress.recent = [*progress.recent, (nll, count)][-max(1, self.steps // 10) :]
        self._report(
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
        self._after_step()

    def _after_step(self) -> None:
        """Evaluate, keep the best, stop early, write a checkpoint: whatever is due."""
        progress, last = self._progress, self._progress.step >= self.until
        if self._evaluate and (progress.step % self._eval_every == 0 or last):
            held_out = progress.last_loss = self._evaluate()
            if progress.best_loss is None or held_out < progress.best_loss:
                progress.best_loss, progress.best_step, progress.stale = held_out, progress.step, 0
                self._best = flat_copy(self._optimizer.flat) if self._keeps_best else None
            else:
                progress.stale += 1
                self._stopped_early = self._is_stale()
            self._report({"kind": "eval", "step": progress.step, "loss": held_out})
        interrupted = self._should_stop() and not self.over
        if self.over or interrupted or progress.step % self._checkpoint_every == 0:
            self._save()
        if interrupted:
            raise InterruptedRunError(f"interrupted after step {progress.step} of {self.steps}")

    def _is_stale(self) -> bool:
        patience = self._spec.patience
        return patience is not None and self._progress.stale >= patience

    def _save(self) -> None:
        if self._checkpoints:
            path = save_checkpoint(
                self._checkpoints,
                self._progress,
                self._optimizer.state(),
                self._best,
                run=self._run,
            )
            self._report({"kind": "checkpoint", "step": self._progress.step, "path": str(path)})

    def finish(self) -> FitResult:
        """Leave the parameters that the spec keeps, and say what the run came to."""
        progress = self._progress
        if self._best is not None and progress.best_step is not None:
            with torch.no_grad():
                self._optimizer.flat.copy_(self._best)
        recent = progress.recent
        return FitResult(
            steps=progress.step,
            train_loss=sum(n for n, _ in recent) / max(1, sum(c for _, c in recent)),
            eval_loss=progress.best_loss if self._keeps_best else progress.last_loss,
            eval_loss_before=progress.before,
            best_step=(progress.best_step if self._keeps_best else None) or progress.step,
            stopped_early=self._stopped_early,
            tokens=progress.tokens,
            seconds=progress.seconds,
            state_bytes=self._optimizer.state_bytes,
            notes=tuple(self._notes),
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
