"""What is given to a run, and what it comes to: frozen values that loops and callers share."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lorakit.training.spec import TrainSpec

Event = Mapping[str, Any]
"""What is reported: one flat mapping with a "kind"."""


@dataclass(frozen=True)
class Schedule:
    """What a run does, step by step.

    Attributes:
        steps: that the schedule spans.
        learning_rate: the peak.
        spec: warm-up, decay, evaluations, checkpoints, patience.
        until: rest after this step, with a checkpoint, as if it were the last; None for no rest.
    """

    steps: int
    learning_rate: float
    spec: TrainSpec
    until: int | None = None

    @property
    def last(self) -> int:
        """The step after which the run rests."""
        return self.steps if self.until is None else min(self.until, self.steps)

    @property
    def eval_every(self) -> int:
        """Steps between two evaluations."""
        return self.spec.eval_every or max(1, math.ceil(self.steps / 4))

    @property
    def checkpoint_every(self) -> int:
        """Steps between two checkpoints."""
        return self.spec.checkpoint_every or self.eval_every


@dataclass(frozen=True)
class Moments:
    """What AdamW remembers of trained parameters: a run that has it goes on as if it had never ended.

    Attributes:
        steps: that were taken, for the correction of the moments' bias.
        learning_rate: the peak that they were taken at.
        of: of each parameter both moments, in its shape.
    """

    steps: int
    learning_rate: float
    of: Mapping[nn.Parameter, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Observers:
    """Who looks at a run, and may end it.

    Attributes:
        evaluate: held-out loss in nats per token; without it the last parameters are kept.
        report: called with one flat mapping after each step, evaluation and checkpoint.
        should_stop: asked between steps; where true, a checkpoint is written and the run ends.
    """

    evaluate: Callable[[], float] | None = None
    report: Callable[[Event], None] = lambda event: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Checkpoints:
    """Where a run is kept.

    Attributes:
        folder: of the run, for checkpoints and a diverged batch; None keeps nothing on disk.
        run: hash of what the run depends on, kept in its checkpoints.
        kernels: what computes (kernels/native.py), kept in them too: another set gives other bits.
        resume: go on from the newest checkpoint in `folder`, if there is one.
    """

    folder: Path | None = None
    run: str = ""
    resume: bool = False
    kernels: str = "plain"

    @property
    def place(self) -> Path | None:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints" if self.folder else None


@dataclass(frozen=True)
class FitResult:
    """What a run came to.

    Attributes:
        steps: done, of those planned.
        train_loss: mean over the last tenth of the steps, nats per supervised token.
        eval_loss: of the parameters kept (`TrainSpec.keep`), None without held-out rows.
        eval_loss_before: before the first step.
        best_step: the step whose parameters were kept; 0 for those that were there before.
        stopped_early: whether patience ran out.
        tokens, seconds: real tokens trained on, and the time of the steps alone.
        state_bytes: of the optimizer's moments, and of a master copy where there is one.
        notes: what the user should know.
        moments: of the parameters kept, where they were asked for; on the CPU.
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
    moments: Moments | None = field(default=None, repr=False, compare=False)
