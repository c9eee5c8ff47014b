"""A comparison's events on the terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lorakit.cli.show import console, duration, say
from lorakit.cli.trial_progress import TrialWatcher
from lorakit.comparing.wording import margins, nothing_told
from lorakit.files.wording import count, size

if TYPE_CHECKING:
    from lorakit.comparing.planning import CompareEstimate


class CompareWatcher(TrialWatcher):
    """Shows what `run_compare` reports: its trials, and before them their forecast."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        if event["kind"] == "estimate":
            show_estimate(event["estimate"], event["arms"])
        else:
            super().__call__(event)


def show_estimate(estimate: "CompareEstimate", arms: Sequence[str]) -> None:
    """Print the rows, and the estimate of every arm and of the whole comparison."""
    found, profile = estimate.profile, estimate.profile.profile
    say(profile.notes)
    say(
        [
            f"{count(profile.rows)} training rows, {count(found.validation_rows)} validation rows (to "
            f"choose learning rates), {count(profile.eval_rows)} test rows; "
            f"{profile.tokens_per_step:,.0f} tokens a step, base in {profile.dtype}"
        ]
    )
    table = Table(box=None, pad_edge=False)
    for name in ("forecast", "trained", "memory", "a step", "steps", "one run"):
        table.add_column(name, justify="left" if name == "forecast" else "right")
    for name, steps, each in zip(arms, estimate.steps, found.estimates, strict=True):
        table.add_row(
            name,
            count(each.trainable_parameters),
            size(each.peak_memory_bytes),
            duration(each.seconds_per_step),
            count(steps),
            duration(steps * each.seconds_per_step),
        )
    console.print(table)
    say(
        [
            f"{estimate.trials} trials, probes, evaluations and answers included: about "
            f"{duration(estimate.seconds)}, and {size(estimate.peak_memory_bytes)} of memory",
            margins(estimate.margins),
            *nothing_told(profile.eval_rows, estimate.seeds),
            *(each.note for each in found.estimates if each.note),
        ]
    )
