"""One run's own part in training: its schedule, optimizer, evaluations and checkpoints.

A loop asks a course for nothing but its parameters' gradients: `fit` has one course, `fit_jobs` one
for each job. What a run is, it is here, so that one of several concurrent jobs is the run that it would be alone.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lorakit.data.batches import Batch
from lorakit.errors import DivergedError, InterruptedRunError
from lorakit.files.whole import write_json
from lorakit.training.checkpoint import (
    Progress,
    flat_copy,
    load_checkpoint,
    save_checkpoint,
)
from lorakit.training.guard import FirstStepGuard
from lorakit.training.moments import State
from lorakit.training.optimizer import FlatAdamW, learning_rate_at
from lorakit.training.rates import EVERYTHING, Rates
from lorakit.training.schedule import Checkpoints, FitResult, Moments, Observers, Schedule

MakeGuard = Callable[[Callable[[nn.Parameter], Tensor]], FirstStepGuard]


_NOBODY, _NOWHERE = Observers(), Checkpoints()


class Course:
    """A run in progress; a loop begins it, and gives it gradients step by step.

    Args:
        parameters: trained; those that need no gradient are left out.
        batches_of: the micro-batches of step i (from 0); it must depend on i alone.
        schedule: what is done.
        observers: who looks.
        checkpoints: where it is kept.
        guard: makes what looks at the model around the first step, given what the optimizer moves
            of a parameter; None for no guard.
        moments: AdamW's, of the run that this one goes on from; None where there are none.
        keep_moments: give back the moments of the parameters that are kept.
        wide: parameters whose moments keep 32 bits, where others have 8.
        rates: which elements are trained, and which parameters at a rate of their own.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        batches_of: Callable[[int], Sequence[Batch]],
        schedule: Schedule,
        observers: Observers = _NOBODY,
        checkpoints: Checkpoints = _NOWHERE,
        guard: MakeGuard | None = None,
        *,
        moments: Moments | None = None,
        keep_moments: bool = False,
        wide: Collection[nn.Parameter] = (),
        rates: Rates = EVERYTHING,
    ) -> None:
        self.schedule, self._observers, self._checkpoints = schedule, observers, checkpoints
        self._batches_of, self._spec = batches_of, schedule.spec
        self._optimizer = FlatAdamW(parameters, schedule.spec, wide, rates)
        if moments is not None:
            self._optimizer.take_moments(moments.steps, moments.of)
        self._steps_before = self._optimizer.steps
        self._progress, self._notes = Progress(), list[str]()
        # A copy of everything trained: none is made where none will be wanted.
        self._keeps_best = observers.evaluate is not None and schedule.spec.keep == "best"
        self._keeps_moments = keep_moments
        self._best: Tensor | None = None
        self._best_moments: State | None = None
        self._remember_best()
        self._stopped_early = False
        self._make_guard = guard
        self._guard: FirstStepGuard | None = None

    def begin(self) -> None:
        """Go on from a checkpoint, or evaluate what is there before the first step.

        Raises:
            OutputError: the checkpoint is damaged, or belongs to another run.
        """
        saved, observers = None, self._observers
        if self._checkpoints.resume and self._checkpoints.place:
            kept = self._checkpoints
            saved = load_checkpoint(self._checkpoints.place, run=kept.run, kernels=kept.kernels)
        if saved:
            self._progress, state, self._best = saved
            self._optimizer.load_state(state)
            if self._best_moments is not None:
                self._best_moments = {name: state[f"best_{name}"] for name in self._best_moments}
            self._stopped_early = self._is_stale()
            observers.report({"kind": "resume", "step": self._progress.step})
        elif observers.evaluate:
            self._progress.before = observers.evaluate()
            # What was there before is a candidate: a run may end no worse than it began.
            self._progress.best_loss, self._progress.best_step = self._progress.before, 0
            observers.report({"kind": "eval", "step": 0, "loss": self._progress.before})
        if self._progress.step == 0 and self._make_guard is not None:
            self._guard = self._make_guard(self._optimizer.master_of)

    @property
    def step(self) -> int:
        """Steps done."""
        return self._progress.step

    @property
    def over(self) -> bool:
        """Whether no step is left to do."""
        return self._progress.step >= self.schedule.last or self._stopped_early

    @property
    def seed(self) -> int:
        """Of the next step's dropout: it depends on the run's seed and the step alone, so that a
        resumed run repeats it."""
        return self._spec.seed * 1_000_003 + self._progress.step

    def batches(self) -> Sequence[Batch]:
        """The micro-batches of the next step."""
        return self._batches_of(self._progress.step)

    def advance(self, nll: float, count: float, batches: Sequence[Batch], seconds: float) -> None:
        """Take the step whose gradients are there, and all that follows it.

        Args:
            nll: nats of all supervised tokens of the step.
            count: of these tokens, or the sum of their weights: the one division.
            batches: that the gradients came from.
            seconds: that the gradients took.

        Raises:
            DivergedError: a loss or gradient is not finite (the batch is saved, the parameters are
                those of the step before), or after the first step nothing moved or the base did.
            InterruptedRunError: `should_stop` said so.
        """
        progress, spec, step = self._progress, self._spec, self._progress.step
        started = time.perf_counter()
        rate = learning_rate_at(step, self.schedule.steps, self.schedule.learning_rate, spec)
        norm = math.nan
        if math.isfinite(nll):
            norm = self._optimizer.step(rate, divide_by=count, clip=spec.clip)
        if not math.isfinite(norm):
            raise _diverged(step, nll / count, norm, batches, self._checkpoints.folder)
        if self._guard:
            self._notes += self._guard.check(rate)
            self._guard = None
        # The update belongs to the step: of full fine-tuning it is a good part.
        seconds += time.perf_counter() - started
        seen = sum(batch.tokens for batch in batches)
        progress.step, progress.tokens = step + 1, progress.tokens + seen
        progress.seconds += seconds
        progress.recent = [*progress.recent, (nll, count)][-max(1, self.schedule.steps // 10) :]
        self._observers.report(
            {
                "kind": "train",
                "step": progress.step,
                "loss": nll / count,
                "learning_rate": rate,
                "grad_norm": norm,
                "tokens": seen,
                "loss_tokens": sum(batch.token_count for batch in batches),
                "seconds": seconds,
                "real_tokens_per_second": seen / seconds,
            }
        )
        self._after_step()

    def _after_step(self) -> None:
        """Evaluate, keep the best, stop early, write a checkpoint: whatever is due."""
        progress, last = self._progress, self._progress.step >= self.schedule.last
        evaluate = self._observers.evaluate
        if evaluate and (progress.step % self.schedule.eval_every == 0 or last):
            held_out = progress.last_loss = evaluate()
            if progress.best_loss is None or held_out < progress.best_loss:
                progress.best_loss, progress.best_step, progress.stale = held_out, progress.step, 0
                self._remember_best()
            else:
                progress.stale += 1
                self._stopped_early = self._is_stale()
            self._observers.report({"kind": "eval", "step": progress.step, "loss": held_out})
        interrupted = self._observers.should_stop() and not self.over
        if self.over or interrupted or progress.step % self.schedule.checkpoint_every == 0:
            self._save()
        if interrupted:
            raise InterruptedRunError(
                f"interrupted after step {progress.step} of {self.schedule.steps}"
            )

    def _remember_best(self) -> None:
        if not self._keeps_best:
            return
        self._best = flat_copy(self._optimizer.flat)
        if self._keeps_moments:
            self._best_moments = self._optimizer.narrow_moments()

    def _is_stale(self) -> bool:
        patience = self._spec.patience
        return patience is not None and self._progress.stale >= patience

    def _save(self) -> None:
        if self._checkpoints.place:
            state = self._optimizer.state()
            if self._best_moments is not None:
                state |= {f"best_{name}": each for name, each in self._best_moments.items()}
            path = save_checkpoint(
                self._checkpoints.place,
                self._progress,
                state,
                self._best,
                run=self._checkpoints.run,
                kernels=self._checkpoints.kernels,
            )
            self._observers.report(
                {"kind": "checkpoint", "step": self._progress.step, "path": str(path)}
            )

    def finish(self) -> FitResult:
        """Leave the parameters that the spec keeps, and say what the run came to."""
        progress, best = self._progress, self._progress.best_step
        kept = progress.step if best is None or not self._keeps_best else best
        if self._best is not None and best is not None:
            with torch.no_grad():
                self._optimizer.take(self._best)
        recent = progress.recent
        return FitResult(
            steps=progress.step,
            train_loss=sum(n for n, _ in recent) / (sum(c for _, c in recent) or 1),
            eval_loss=progress.best_loss if self._keeps_best else progress.last_loss,
            eval_loss_before=progress.before,
            best_step=kept,
            stopped_early=self._stopped_early,
            tokens=progress.tokens,
            seconds=progress.seconds,
            state_bytes=self._optimizer.state_bytes,
            notes=tuple(self._notes),
            moments=self._kept_moments(kept) if self._keeps_moments else None,
        )

    def _kept_moments(self, kept: int) -> Moments:
        narrow = self._best_moments
        if narrow is None:
            narrow = self._optimizer.narrow_moments()
        steps = self._steps_before + kept
        rate = self.schedule.learning_rate
        return Moments(steps, rate, self._optimizer.by_parameter(narrow))


def _diverged(
    step: int, loss: float, norm: float, batches: Sequence[Batch], folder: Path | None
) -> DivergedError:
    rows = [row for batch in batches for row in batch.rows_S]
    saved = ""
    if folder:
        path = folder / f"diverged-step-{step + 1}.json"
        content = {"step": step + 1, "rows": rows, "ids": [b.ids_T.tolist() for b in batches]}
        write_json(path, content)
        saved = f"; its batch is in {path}"
    return DivergedError(
        f"step {step + 1}: the loss is {loss:g} and the gradient's norm {norm:g}{saved}. "
        "The parameters are those of the step before. Try a lower --learning-rate, "
        "a longer --warmup, or look at the rows named there"
    )
