"""What an arm cost, from what its own processes measured."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from lorakit.comparing.protocol import ArmFindings
from lorakit.comparing.trials import RunResult

TASKS = (1, 10)


def costs(arm: ArmFindings, targets: Mapping[str, float], base_bytes: int | None) -> dict[str, Any]:
    """The measured figures of an arm; over its seeds, so that no single run speaks for it.

    Args:
        arm: with its runs.
        targets: final losses of the other arms by name, to be reached.
        base_bytes: of the base's weights on disk, which every adapter needs once; None where
            they were not measured.
    """
    runs = [run.result for run in arm.runs]
    measured = [run.measured for run in runs]
    own = round(fmean(run.bytes_on_disk for run in runs))
    losses = [fmean(run.course[i].loss for run in runs) for i in range(points(runs))]
    seconds = [fmean(each.course_seconds[i] for each in measured) for i in range(points(runs))]
    paces = [each.pace for each in measured]
    return {
        # The largest of the seeds: it is what the machine must have.
        "peak_memory_bytes": max(each.peak_memory_bytes for each in measured),
        "process_peak_bytes": max(each.process_peak_bytes for each in measured),
        "seconds_per_step": median(p.seconds_per_step or 0.0 for p in paces),
        "tokens_per_second": median(p.tokens_per_second or 0.0 for p in paces),
        "train_seconds": fmean(each.train_seconds for each in measured),
        "seconds_to_loss_of": {
            name: reached(losses, seconds, target) for name, target in targets.items()
        },
        "course_seconds": seconds,
        "bytes_on_disk": own,
        "bytes_for_tasks": {
            str(n): _for_tasks(arm.arm.method.kind, own, base_bytes, n) for n in TASKS
        },
    }


def points(runs: Sequence[RunResult]) -> int:
    """Evaluations that all runs have."""
    return min(len(run.course) for run in runs)


def reached(losses: Sequence[float], seconds: Sequence[float], target: float) -> float | None:
    """When a falling curve first reached a loss, linear between its points; None for never.

    >>> reached([3.0, 2.0, 1.0], [0.0, 10.0, 30.0], 1.5)
    20.0
    """
    if losses[0] <= target:
        return seconds[0]
    for i in range(1, len(losses)):
        if losses[i] <= target:
            share = (losses[i - 1] - target) / (losses[i - 1] - losses[i])
            return seconds[i - 1] + share * (seconds[i] - seconds[i - 1])
    return None


def _for_tasks(kind: str, own: int, base_bytes: int | None, tasks: int) -> int | None:
    """A whole model a task, or one base and an adapter a task."""
    if kind == "full":
        return tasks * own
    return None if base_bytes is None else base_bytes + tasks * own
