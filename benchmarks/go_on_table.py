"""The tables of go_on.py: what going on from an adapter does to what it knew, and to what is new."""

from collections.abc import Sequence

import bench

WITHIN = 1.03
"""Going on in half of the steps, over a fresh run: the highest ratio of losses that is wanted."""


def holds(line: bench.Line) -> bool:
    """Whether a pair is as it is wanted to be, see go_on.py."""
    if line["same"]:
        return bool(line["loss"] - line["parent_loss"] <= line["half_width"])
    return bool(line["loss"] <= WITHIN * line["fresh_loss"])


def interval(line: bench.Line) -> str:
    """Between which ratios the loss over the fresh run's lies; '' of lines that held 24 rows against it."""
    if "change_low" not in line:
        return ""
    low, high = (1 + line[end] / line["fresh_loss"] for end in ("change_low", "change_high"))
    return f"{low:.2f} to {high:.2f}"


def table(lines: Sequence[bench.Line]) -> str:
    """One row a pair, in both kinds of comparison."""
    same = [line for line in lines if line["same"]]
    other = [line for line in lines if not line["same"]]
    first = bench.table(
        ("pair", "steps", "parent's loss", "± its interval", "after", "ratio", "holds"),
        [
            (
                *(line["pair"], f"{line['parent_steps']} + {line['steps']}"),
                *(f"{line['parent_loss']:.4f}", f"{line['half_width']:.4f}"),
                *(f"{line['loss']:.4f}", f"{line['loss'] / line['parent_loss']:.2f}"),
                "yes" if holds(line) else "no",
            )
            for line in same
        ],
    )
    second = bench.table(
        ("pair", "steps", "parent", "going on, half", "fresh", "ratio", "its interval", "holds"),
        [
            (
                *(line["pair"], f"{line['parent_steps']} + {line['steps']}, {line['fresh_steps']}"),
                *(f"{line['parent_loss']:.4f}", f"{line['loss']:.4f}"),
                *(f"{line['fresh_loss']:.4f}", f"{line['loss'] / line['fresh_loss']:.2f}"),
                interval(line),
                "yes" if holds(line) else "no",
            )
            for line in other
        ],
    )
    kept = sum(map(holds, lines))
    return f"{first}\n\n{second}\n\n{kept} of {len(lines)} pairs hold."
