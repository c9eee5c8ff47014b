"""Small renderings that several commands share."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorakit.extras import no_page
from lorakit.files.wording import count

if TYPE_CHECKING:
    from lorakit.lora import Plan

# Rows, files, columns and adapters may be called anything: "a:train" is no emoji and "[red]" no colour.
# What is styled says so, by a `style` or by `styled`.
console = Console(highlight=False, markup=False, emoji=False)
errors = Console(highlight=False, markup=False, emoji=False, stderr=True)


def styled(markup: str) -> Text:
    """A fixed text with rich's markup; never one that holds a name."""
    return Text.from_markup(markup, emoji=False)


def duration(seconds: float) -> str:
    """Seconds as text: 3,725 -> 1 h 02 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def say(lines: Iterable[str]) -> None:
    """Print sentences as they are, without markup."""
    for line in lines:
        console.print(line, soft_wrap=True)


def report_line(out: Path) -> str:
    """Where a folder's page is, or why there is none."""
    why = no_page()
    return f"report:  {out / 'report.html'}" if why is None else f"note: {why}"


def warn(message: str) -> None:
    """One warning on standard error."""
    errors.print(Text.assemble(("note:", "yellow"), " ", message), soft_wrap=True)


def show_error(message: str) -> None:
    """One error on standard error."""
    errors.print(Text.assemble(("error:", "bold red"), " ", message), soft_wrap=True)


def plan_table(plan: "Plan") -> Table:
    """The targets of a plan; targets of the same kind and shape share one row."""
    table = Table(title=str(plan), title_justify="left", box=None, pad_edge=False)
    for name in ("module", "how many", "shape", "rank", "scale", "trainable"):
        table.add_column(name, justify="left" if name == "module" else "right")
    groups: dict[tuple[Any, ...], list[int]] = {}
    for target in plan.targets:
        shape = f"{target.geometry.out_features} x {target.geometry.in_features}"
        name = ".".join("*" if part.isdecimal() else part for part in target.path.split("."))
        key = (name, shape, target.rank, target.scale)
        groups.setdefault(key, []).append(target.trainable)
    for (name, shape, rank, scale), sizes in groups.items():
        table.add_row(name, str(len(sizes)), shape, str(rank), f"{scale:g}", count(sum(sizes)))
    return table


def left_out(plan: "Plan") -> list[str]:
    """One sentence for each reason why modules are left out, and one for tied weights."""
    reasons: dict[str, list[str]] = {}
    for skipped in plan.skipped:
        reasons.setdefault(skipped.reason, []).append(skipped.path)
    lines = [
        f"left out: {paths[0]}" + (f" and {len(paths) - 1} more" if paths[1:] else "") + f": {why}"
        for why, paths in reasons.items()
    ]
    adapted = {t.path for t in plan.targets}
    tied = [t for t in plan.targets if t.tied_to]
    alone = [t for t in tied if not adapted & set(t.tied_to)]
    together = [t for t in tied if t not in alone]
    lines += [
        f"{t.path} shares its weight with {', '.join(t.tied_to)}: only {t.path} is adapted, and "
        "merging unties them"
        for t in alone
    ]
    if together:
        first = together[0]
        lines.append(
            f"{len(together)} modules share their weight with others, such as {first.path} with "
            f"{first.tied_to[0]}: each has a pair of its own, and merging unties them"
        )
    return lines


def scores_table(result: Mapping[str, Any]) -> Table:
    """Scores before and after training side by side, the one that fits the task first.

    Each is a share of the best possible; a word says where the change is larger than chance.
    """
    from lorakit.adapters.measurements import score_name
    from lorakit.report.wording import score_verdict

    table = Table(box=None, pad_edge=False)
    for name in ("", "before", "after", " "):
        table.add_column(name, justify="right" if name.strip() else "left")
    before, after = result["scores_before"], result["scores_after"]
    for name, value in after.items():
        first = before.get(name, float("nan"))
        table.add_row(score_name(name), f"{first:.3f}", f"{value:.3f}", score_verdict(result, name))
    likely = [result.get(name) for name in ("choices_before", "choices_after")]
    if all(likely):
        shares = (f"{each['accuracy']:.3f}" for each in likely if each)
        table.add_row("right label likeliest", *shares, "")
    return table


def is_of_end(note: str) -> bool:
    """Whether a run's note says what became of its adapter beside what it was trained from."""
    begins = ("no step was better", "the result", "stored as", "not stored")
    return note.startswith(begins) or "own held-out rows were" in note
