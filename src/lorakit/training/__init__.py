"""Training: a loss, an optimizer, one loop, and checkpoints to go on from.

The names below are loaded when first used: the spec in this room needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.training.course import Course
    from lorakit.training.joint import JointLoss, check_can_share, fit_jobs, guard_of
    from lorakit.training.loop import fit
    from lorakit.training.loss import CausalLoss, Loss, held_out_loss
    from lorakit.training.optimizer import auto_learning_rate, learning_rate_at
    from lorakit.training.schedule import (
        Checkpoints,
        Event,
        FitResult,
        Moments,
        Observers,
        Schedule,
    )
    from lorakit.training.spec import TrainSpec

_HOMES = {
    "CausalLoss": "loss",
    "Checkpoints": "schedule",
    "Course": "course",
    "Event": "schedule",
    "FitResult": "schedule",
    "JointLoss": "joint",
    "Loss": "loss",
    "Moments": "schedule",
    "Observers": "schedule",
    "Schedule": "schedule",
    "TrainSpec": "spec",
    "auto_learning_rate": "optimizer",
    "check_can_share": "joint",
    "fit": "loop",
    "fit_jobs": "joint",
    "guard_of": "joint",
    "held_out_loss": "loss",
    "learning_rate_at": "optimizer",
}

__all__ = [
    "CausalLoss",
    "Checkpoints",
    "Course",
    "Event",
    "FitResult",
    "JointLoss",
    "Loss",
    "Moments",
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


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
