"""A checkpoint: all that the next step depends on, in one folder that appears whole or not at all.

    checkpoints/step-000120/
      state.safetensors   flat parameters, Adam's moments, the best parameters so far
      progress.json       step, best step and loss, evaluations without a new best, run hash

The order of rows and the dropout of a step depend on the seed and the step's number alone, so no
generator's state needs to be kept.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lorakit.errors import AdapterError, OutputError
from lorakit.files.tensors import read_tensors, write_tensors
from lorakit.files.whole import remove_folder, sweep, write_folder, write_json
from lorakit.kernels.native import PLAIN, VARIABLE

_PREFIX = "step-"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: steps done.
        tokens: real tokens seen in them.
        seconds: time spent in them, evaluations left out.
        best_step, best_loss: of the best evaluation; None before the first.
        last_loss: of the newest evaluation after the start.
        stale: evaluations since the best.
        before: held-out loss before the first step.
        recent: (summed nats, tokens or the sum of their weights) of the last tenth of the steps.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_loss: float | None = None
    last_loss: float | None = None
    stale: int = 0
    before: float | None = None
    recent: list[tuple[float, float]] = field(default_factory=list)


def save_checkpoint(
    folder: Path,
    progress: Progress,
    state: dict[str, Tensor],
    best: Tensor | None,
    *,
    run: str,
    kernels: str = PLAIN,
) -> Path:
    """Write the checkpoint of a step beside the others and remove the ones before it.

    Args:
        folder: the run's `checkpoints` folder.
        progress: where the run stands.
        state: the optimizer's state.
        best: (n,) the best flat parameters so far; None where the last ones are kept.
        run: hash of what the run depends on; resuming with another is refused.
        kernels: what computes, see `lorakit.kernels.native`; likewise.

    Raises:
        OutputError: it cannot be written, as on a full disk; the one before is still there. Or the
            one before cannot be removed.
    """
    described = {"run": run, "kernels": kernels, **asdict(progress)}

    def fill(partial: Path) -> None:
        write_tensors(
            partial / "state.safetensors", {**state, **({} if best is None else {"best": best})}
        )
        write_json(partial / "progress.json", described)

    target = folder / f"{_PREFIX}{progress.step:06d}"
    write_folder(target, fill, overwrite=True, what="checkpoint")
    _keep_only(target)
    return target


def load_checkpoint(
    folder: Path, *, run: str, kernels: str = PLAIN
) -> tuple[Progress, dict[str, Tensor], Tensor | None] | None:
    """The newest checkpoint, or None where there is none; older ones that a kill left are removed.

    Raises:
        OutputError: it belongs to a run with other data, model or settings, was computed by other
            kernels, or is damaged.
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
    before = described.pop("kernels", PLAIN)
    if before != kernels:
        raise OutputError(
            f"the checkpoint {newest} was computed by the kernels {before!r}, and this run would go on by "
            f"{kernels!r}, with other bits: set {VARIABLE}={before}, or begin anew with another --out"
        )
    _keep_only(newest)
    best = tensors.pop("best", None)
    return Progress(**described), tensors, best


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob(f"{_PREFIX}*") if (p / "progress.json").is_file())


def _keep_only(target: Path) -> None:
    """Remove the other checkpoints, and what killed processes left among them."""
    sweep(target.parent)
    for other in target.parent.glob(f"{_PREFIX}*"):
        if other != target:
            remove_folder(other)


def flat_copy(flat: Tensor) -> Tensor:
    """A copy on the CPU, to keep the best parameters while training goes on."""
    return torch.clone(flat.detach()).cpu()
