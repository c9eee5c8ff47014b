"""The tiles and tables of a comparison's page, as text in cells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.adapters.measurements import score_name
from lorakit.report.compare_read import CompareFiles
from lorakit.report.numbers import (
    DASH,
    count,
    duration,
    is_number,
    loss,
    number,
    percent,
    signed,
    size,
)
from lorakit.report.read import Record
from lorakit.report.run_tables import Tile
from lorakit.report.wording import score_value


@dataclass(frozen=True)
class Cell:
    """A cell: its text, and a smaller line under it."""

    text: str
    aside: str = ""


def tiles(files: CompareFiles, arm: Record) -> list[Tile]:
    """The figures of one arm beside the reference that a reader wants first."""
    between = files.difference(arm["name"])
    reference = files.reference
    if between is None:
        return []
    ours, theirs, shares = arm["measured"], reference["measured"], between["measured"]
    kept, word = between["verdict"].get("gain_kept"), between["verdict"]["word"]
    gain_share = f"; {percent(kept)} of the gain" if is_number(kept) and word == "worse" else ""
    ratio = between["kl"].get("ratio")
    times = _ratio(arm["kl"]["mean"], reference["kl"]["mean"]) if ratio else DASH
    result = [
        Tile(
            "Held-out loss", _nats(between["loss"]["mean"]), "nats per token",
            f"{word}; {interval(between['loss'], _nats)}{gain_share}",
        ),
        Tile(
            "Forgetting", times, "",
            f"{between['kl']['verdict']['word']}; KL {number(arm['kl']['mean'], 3)} against "
            f"{number(reference['kl']['mean'], 3)} nats per token",
        ),
    ]  # fmt: skip
    for name, one in list(between["scores"].items())[:1]:
        title = score_name(name)
        result.append(
            Tile(
                title[0].upper() + title[1:], _scored(one["mean"]), "",
                f"{one['verdict']['word']}; {interval(one, _scored)}",
            )
        )  # fmt: skip
    words = {name: each["word"] for name, each in shares["verdicts"].items()}
    result += [
        Tile(
            "Trained parameters", percent(1 - between["fewer_parameters"]), "",
            f"{count(arm['trainable_parameters'])} of {count(reference['trainable_parameters'])}",
        ),
        Tile(
            "Peak memory", percent(shares["peak_memory_bytes_share"], 0), "",
            f"{words['peak_memory_bytes']}; {size(ours['peak_memory_bytes'])} of "
            f"{size(theirs['peak_memory_bytes'])}",
        ),
        Tile(
            "Time of a step", percent(shares["seconds_per_step_share"], 0), "",
            f"{words['seconds_per_step']}; {duration(ours['seconds_per_step'])} of "
            f"{duration(theirs['seconds_per_step'])}",
        ),
    ]  # fmt: skip
    return result


def quality(files: CompareFiles) -> tuple[list[str], list[list[Cell]]]:
    """Headers and rows: loss and every score, base, arms, and each difference with its interval."""
    arms, base = files.arms, files.result["base"]
    headers = ["", "base", *(arm["name"] for arm in arms)]
    first = [Cell("held-out loss", "nats per token, lower is better"), Cell(loss(base["loss"]))]
    rows = [[*first, *(_loss_cell(files, arm) for arm in arms)]]
    for name in arms[0]["scores"]:
        row = [Cell(score_name(name), "higher is better")]
        row.append(Cell(score_value(name, base["scores"].get(name))))
        rows.append([*row, *(_score_cell(files, arm, name) for arm in arms)])
    return headers, rows


def _loss_cell(files: CompareFiles, arm: Record) -> Cell:
    between = files.difference(arm["name"])
    if between is None:
        return Cell(loss(arm["loss"]["mean"]))
    return Cell(
        loss(arm["loss"]["mean"]), _aside(between["loss"], _nats, between["verdict"]["word"])
    )


def _score_cell(files: CompareFiles, arm: Record, name: str) -> Cell:
    value = score_value(name, arm["scores"][name]["mean"])
    between = files.difference(arm["name"])
    if between is None or name not in between["scores"]:
        return Cell(value)
    one = between["scores"][name]
    return Cell(value, _aside(one, _scored, one["verdict"]["word"]))


def interval(d: Record, show: Callable[[float], str]) -> str:
    """The interval of a difference in words."""
    if d["low"] is None:
        return f"{count(d['rows'])} rows, too few for an interval"
    return f"{percent(d['level'], 0)} interval {show(d['low'])} to {show(d['high'])}"


def _aside(d: Record, show: Callable[[float], str], word: str) -> str:
    """A difference, its interval and its word."""
    if d["low"] is None:
        return f"{show(d['mean'])}, {count(d['rows'])} rows: {word}"
    return f"{show(d['mean'])} ({show(d['low'])} to {show(d['high'])}): {word}"


def _scored(value: float) -> str:
    """How a difference of a score is shown: on the scores' scale of 0 to 1, with its sign."""
    return signed(value, 3)


def cost(files: CompareFiles) -> tuple[list[str], list[list[Cell]]]:
    """Headers and rows: what each arm's own process measured, and its share of the reference's."""
    arms = files.arms
    rows: list[list[Cell]] = []

    def add(name: str, key: str, show: Any, aside: str = "", *, measured: bool = True) -> None:
        values = [(arm["measured"] if measured else arm).get(key) for arm in arms]
        rows.append([Cell(name, aside), *_shared(values, show)])

    add("trained parameters", "trainable_parameters", count, measured=False)
    add("optimizer state", "optimizer_state_bytes", size, "moments and master copy", measured=False)
    add("peak memory", "peak_memory_bytes", size, "of the process, to the end of training")
    add("time of a step", "seconds_per_step", duration, "median")
    add("real tokens per second", "tokens_per_second", count)
    add("time of training", "train_seconds", duration, "steps alone, mean of the seeds")
    for tasks, words in (("1", "one task"), ("10", "ten tasks")):
        values = [arm["measured"]["bytes_for_tasks"].get(tasks) for arm in arms]
        rows.append([Cell(f"on disk, {words}", "base included"), *_shared(values, size)])
    for other in arms:
        cells = [Cell(f"to the final loss of {other['name']}", "seconds of training")]
        for arm in arms:
            if arm is other:
                cells.append(Cell(duration(arm["measured"]["train_seconds"]), "its own end"))
            else:
                took = arm["measured"]["seconds_to_loss_of"].get(other["name"])
                cells.append(Cell(duration(took) if is_number(took) else "not reached"))
        rows.append(cells)
    return ["", *(arm["name"] for arm in arms)], rows


def _shared(values: Sequence[Any], show: Any) -> list[Cell]:
    first = values[0]
    cells = [Cell(show(first))]
    for value in values[1:]:
        known = is_number(value) and is_number(first) and first > 0
        cells.append(Cell(show(value), f"{percent(value / first)} of it" if known else ""))
    return cells


def forgotten(files: CompareFiles) -> tuple[list[str], list[list[Cell]]]:
    """Headers and rows: KL and loss on general text."""
    arms, general = files.arms, files.result["base"]["general"]
    rows = []
    for key, name, start in (
        ("kl", "KL from the base", 0.0),
        ("general_loss", "loss on general text", general["loss"]),
    ):
        cells = [Cell(name, "nats per token"), Cell(loss(start))]
        for arm in arms:
            between = files.difference(arm["name"])
            aside = ""
            if between:
                d = between[key]
                word = d["verdict"]["word"] if "verdict" in d else ""
                aside = (
                    _aside(d, _nats, word) if word else f"{_nats(d['mean'])}, {interval(d, _nats)}"
                )
            cells.append(Cell(loss(arm[key]["mean"]), aside))
        rows.append(cells)
    return ["", "base", *(arm["name"] for arm in arms)], rows


def probe(files: CompareFiles) -> list[tuple[str, str, str, str, str]]:
    """Arm, round, steps, rate, loss: all that the probes tried."""
    return [
        (
            arm["name"],
            count(p["round"]),
            count(p["steps"]),
            number(p["rate"]),
            loss(p["loss"]) if p["loss"] is not None else "diverged",
        )
        for arm in files.arms
        for p in arm["probe"]
    ]


def rates(files: CompareFiles) -> str:
    """What the probes chose, beside what is published."""
    rates = [f"{arm['name']}: {number(arm['learning_rate'])}" for arm in files.arms]
    ratios = [
        f"{d['arm']} takes {number(d['rate_ratio'], 3)} times the rate of {d['against']}"
        for d in files.result["differences"]
    ]
    published = number(files.result["published_rate_ratio"])
    return (
        f"Learning rates chosen: {'; '.join(rates)}. {'; '.join(ratios)} (published: about "
        f"{published} times)."
    )


def forecast(files: CompareFiles) -> list[tuple[str, str, str, str, str]]:
    """Arm, and what was forecast and measured of memory and of a step."""
    rows = []
    for arm in files.arms:
        guess, real = arm["measured"]["forecast"], arm["measured"]
        rows.append(
            (
                arm["name"],
                size(guess["peak_memory_bytes"]),
                size(real["peak_memory_bytes"]),
                duration(guess["seconds_per_step"]),
                duration(real["seconds_per_step"]),
            )
        )
    return rows


def facts(files: CompareFiles) -> list[tuple[str, str]]:
    """The protocol's settings, by name."""
    result, protocol = files.result, files.result["protocol"]
    general = result["base"]["general"]
    steps = sorted({arm["steps"] for arm in files.arms})
    return [
        ("training rows", count(result["rows"])),
        ("validation rows", count(result["tuning_rows"])),
        ("held-out rows", count(result["eval_rows"])),
        ("budget", str(protocol["budget"])),
        ("steps", " or ".join(count(n) for n in steps)),
        ("rows a step", count(protocol["batch_size"])),
        ("seeds", ", ".join(str(seed) for seed in result["seeds"])),
        ("learning rates tried", f"{count(protocol['rates'])} an arm"),
        ("margins", margins(protocol["margins"])),
        ("weights in", str(result["dtype"])),
        ("general text", str(general["source"])),
        ("general tokens", count(general["tokens"])),
        (
            "next words stored of the base",
            f"{count(general['words'])}, {percent(general['mass'])} of its probability",
        ),
    ]


def margins(margins: Mapping[str, float]) -> str:
    """The margins that were named before the comparison."""
    return (
        f"loss {percent(margins['loss'])} of the reference's gain, scores "
        f"{number(margins['scores'], 3)}, forgetting {percent(margins['forgetting'])} of "
        f"the reference's, memory and time {percent(margins['costs'])}"
    )


def _nats(value: float) -> str:
    return signed(value, 3 if abs(value) >= 0.0005 or value == 0 else 5)


def _ratio(ours: float, theirs: float) -> str:
    return f"{number(ours / theirs, 2)}\u00a0×" if theirs > 0 else DASH
