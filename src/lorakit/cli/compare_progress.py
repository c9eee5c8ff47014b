"""A comparison's events on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from lorakit.cli.show import console, count, duration, say, size
from lorakit.cli.trial_progress import TrialWatcher


class CompareWatcher(TrialWatcher):
    """Shows what `run_compare` reports: its trials, and before them their forecast."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        if event["kind"] == "prospect":
            show_prospect(event["prospect"], event["arms"])
        else:
            super().__call__(event)


def show_prospect(expected: Any, arms: Sequence[str]) -> None:
    """Print the rows, and the forecast of every arm and of the whole comparison."""
    look = expected.look
    say(look["notes"])
    say(
        [
            f"{count(look['rows'])} training rows, {count(look['tuning_rows'])} validation rows (to "
            f"choose learning rates), {count(look['eval_rows'])} test rows; "
            f"{look['tokens_per_step']:,.0f} tokens a step, base in {look['dtype']}"
        ]
    )
    table = Table(box=None, pad_edge=False)
    for name in ("forecast", "trained", "memory", "a step", "steps", "one run"):
        table.add_column(name, justify="left" if name == "forecast" else "right")
    for name, steps, each in zip(arms, expected.steps, look["forecasts"], strict=True):
        table.add_row(
            name,
            count(each["trainable_parameters"]),
            size(each["peak_memory_bytes"]),
            duration(each["seconds_per_step"]),
            count(steps),
            duration(steps * each["seconds_per_step"]),
        )
    console.print(table)
    say(
        [
            f"{expected.trials} trials, probes, evaluations and answers included: about "
            f"{duration(expected.seconds)}, and {size(expected.peak_memory_bytes)} of memory",
            *(each["note"] for each in look["forecasts"] if each["note"]),
        ]
    )
