"""Training: a loss, an optimizer, one loop, and checkpoints to go on from."""

from lorakit.training.course import Course
from lorakit.training.joint import JointLoss, check_can_share, fit_jobs, guard_of
from lorakit.training.loop import fit
from lorakit.training.loss import CausalLoss, Loss, held_out_loss
from lorakit.training.optimizer import auto_learning_rate, learning_rate_at
from lorakit.training.schedule import Checkpoints, Event, FitResult, Observers, Schedule
from lorakit.training.spec import TrainSpec

__all__ = [
    "CausalLoss",
    "Checkpoints",
    "Course",
    "Event",
    "FitResult",
    "JointLoss",
    "Loss",
    "Observers",
    "Schedule",
    "TrainSpec",
    "auto_learning_rate",
    "check_can_share",
    "fit",
    "fit_jobs",
    "guard_of",
    "held_out_loss",
    "learning_rate_at",
]
