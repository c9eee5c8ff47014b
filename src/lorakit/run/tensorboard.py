"""Metrics as TensorBoard events, on request."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.extras import need


class TensorBoard:
    """Writes train and held-out figures of each event; `tensorboard --logdir RUN` shows them."""

    def __init__(self, folder: Path) -> None:
        need("tensorboard", "--tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Write one event."""
        if event["kind"] not in ("train", "eval"):
            return
        names = ("loss", "learning_rate", "grad_norm", "real_tokens_per_second")
        for name in names:
            if name in event:
                self._writer.add_scalar(f"{event['kind']}/{name}", event[name], event["step"])
        self._writer.flush()
