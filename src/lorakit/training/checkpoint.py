"""A checkpoint: all that the next step depends on, in one folder that appears whole or not at all.

    checkpoints/step-000120/
      state.safetensors   flat parameters, Adam's moments, the best parameters so far
      progress.json       step, best step and loss, evaluations without a new best, run hash

The order of rows and the dropout of a step depend on the seed and the step's number alone, so no
generator's state needs to be kept.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lorakit.adapters.tensors import read_tensors, write_tensors
from lorakit.errors import AdapterError, OutputError

_PREFIX = "step-"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: steps done.
        tokens: real tokens seen in them.
        seconds: time spent in them, evaluations left out.
        best_step, best_loss: of the best evaluation; None before the first.
        stale: evaluations since then.
        before: held-out loss before the first step.
        recent: (summed nats, tokens) of the last tenth of the steps.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_loss: float | None = None
    stale: int = 0
    before: float | None = None
    recent: list[tuple[float, int]] = field(default_factory=list)


def save_checkpoint(
    folder: Path, progress: Progress, state: dict[str, Tensor], best: Tensor, *, run: str
) -> Path:
    """Write the checkpoint of a step beside the others and remove the ones before it.

    Args:
        folder: the run's `checkpoints` folder.
        progress: where the run stands.
        state: the optimizer's state.
        best: (n,) the best flat parameters so far.
        run: hash of what the run depends on; resuming with another is refused.

    Raises:
        OutputError: the disk is full; the checkpoint before is still there.
    """
    target = folder / f"{_PREFIX}{progress.step:06d}"
    partial = folder / f".{target.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_tensors(partial / "state.safetensors", {**state, "best": best})
        described = {"run": run, **asdict(progress)}
        (partial / "progress.json").write_text(json.dumps(described, indent=2) + "\n")
        _sync(partial / "progress.json")
        _sync(partial)
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(
            f"cannot write the checkpoint {target}: {error.strerror}; make room and go on with "
            "--resume from the checkpoint before it"
        ) from error
    for other in _checkpoints(folder):
        if other != target:
            shutil.rmtree(other)
    return target


def load_checkpoint(folder: Path, *, run: str) -> tuple[Progress, dict[str, Tensor], Tensor] | None:
    """The newest checkpoint, or None where there is none.

    Raises:
        OutputError: it belongs to a run with other data, model or settings, or is damaged.
    """
    found = _checkpoints(folder)
    if not found:
        return None
    newest = found[-1]
    try:
        described = json.loads((newest / "progress.json").read_text())
        tensors = read_tensors(newest / "state.safetensors")
    except (OSError, ValueError, AdapterError) as error:
        raise OutputError(f"the checkpoint {newest} is damaged ({error}); remove it") from error
    if described.pop("run") != run:
        raise OutputError(
            f"the checkpoint {newest} was made with other data, model or settings: give the ones "
            "in the run's config.yaml, or another --out"
        )
    best = tensors.pop("best")
    return Progress(**described), tensors, best


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob(f"{_PREFIX}*") if (p / "progress.json").is_file())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flat_copy(flat: Tensor) -> Tensor:
    """A copy on the CPU, to keep the best parameters while training goes on."""
    return torch.clone(flat.detach()).cpu()
