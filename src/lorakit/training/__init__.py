"""Training: a loss, an optimizer, one loop, and checkpoints to go on from."""

from lorakit.execution.blocks import fused_blocks, numbers_kept
from lorakit.training.course import Course, Event, FitResult
from lorakit.training.joint import fit_jobs, make_joint_loss
from lorakit.training.loop import fit
from lorakit.training.loss import Loss, held_out_loss, make_loss
from lorakit.training.optimizer import auto_learning_rate, learning_rate_at
from lorakit.training.spec import TrainSpec

__all__ = [
    "Course",
    "Event",
    "FitResult",
    "Loss",
    "TrainSpec",
    "auto_learning_rate",
    "fit",
    "fit_jobs",
    "fused_blocks",
    "held_out_loss",
    "learning_rate_at",
    "make_joint_loss",
    "make_loss",
    "numbers_kept",
]
