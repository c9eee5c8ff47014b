"""A run's page: what its files say, arranged for a reader."""

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.report import plots
from lorakit.report.answers import sample
from lorakit.report.drawing import Drawing, svg, write_png
from lorakit.report.html import write_page
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
from lorakit.report.read import Record, RunFiles, read_run
from lorakit.report.wording import (
    score_change,
    score_name,
    score_share,
    score_value,
    second_verdict,
    verdict,
)


@dataclass(frozen=True)
class Tile:
    """A headline figure: its name, value, unit, and a line under it."""

    name: str
    value: str
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure of the page; `narrow` is drawn for a phone where the wide one would be too small."""

    wide: str
    caption: str
    narrow: str = ""


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` and `plots/*.png` into a run's folder from its plain files.

    Reads result.json, metrics.jsonl, samples.json and config.yaml; a missing one leaves its
    sections out. The page stands alone: no network, no scripts. Returns its path.

    Raises:
        DataError: the folder holds no run, or one of its files is broken.
        OutputError: the page or a plot cannot be written.
    """
    folder = Path(run_folder)
    run = read_run(folder)
    figures = _figures(run, folder / "plots")
    result = run.result
    return write_page(
        folder / "report.html",
        "run.html.j2",
        name=run.name,
        title=_title(result, run.name),
        verdict=verdict(result),
        second_verdict=second_verdict(result),
        notes=[str(note) for note in result.get("notes") or ()],
        tiles=_tiles(result),
        figures=figures,
        evals=_evals(run),
        scores=_scores(result),
        samples=[sample(record) for record in run.samples],
        forecast=_forecast(result),
        facts=_facts(result),
        layers=_layers(result.get("layers") or ()),
        command=_command(result, run),
        config=run.config.strip(),
        versions=_pairs(result.get("versions")),
        machine=_pairs(result.get("machine")),
    )


def _title(result: Record, name: str) -> str:
    model = result.get("model")
    if not model:
        return name
    rank = result.get("rank")
    return f"{model}, LoRA of rank {rank}" if is_number(rank) else str(model)


# --- headline figures -------------------------------------------------------------------------


def _tiles(result: Record) -> list[Tile]:
    """The figures a reader asks for first; one that was not recorded at all is left out."""
    tiles = []
    nats = "nats per token"
    if "eval_loss" in result:
        before = result.get("eval_loss_before")
        note = f"{loss(before)} before training" if is_number(before) else ""
        tiles.append(Tile("Held-out loss", loss(result["eval_loss"]), nats, note))
    elif "train_loss" in result:
        tiles.append(Tile("Training loss", loss(result["train_loss"]), nats, "no rows held out"))
    before, after = result.get("scores_before") or {}, result.get("scores_after") or {}
    for name, value in list(after.items())[:1]:
        note = f"{score_value(name, before[name])} before training" if name in before else ""
        title = score_name(name)
        tiles.append(Tile(title[0].upper() + title[1:], score_value(name, value), "", note))
    if "seconds" in result:
        steps, rows = result.get("steps"), result.get("rows")
        parts = [f"{count(steps)} steps"] if is_number(steps) else []
        parts += [f"{count(rows)} rows"] if is_number(rows) else []
        tiles.append(Tile("Training time", duration(result["seconds"]), "", ", ".join(parts)))
    if "trainable_parameters" in result:
        trained, total = result["trainable_parameters"], result.get("total_parameters")
        known = is_number(trained) and is_number(total) and total > 0
        note = f"{percent(trained / total)} of {count(total)}" if known else ""
        tiles.append(Tile("Parameters trained", count(trained), "", note))
    if "real_tokens_per_second" in result:
        share = result.get("fraction_of_limit")
        note = f"{percent(share, 0)} of this machine's limit" if is_number(share) else ""
        speed = count(result["real_tokens_per_second"])
        tiles.append(Tile("Throughput", speed, "real tokens/s", note))
    if "peak_memory_bytes" in result:
        memory = (result.get("machine") or {}).get("memory_bytes")
        note = f"of {size(memory)}" if is_number(memory) else ""
        tiles.append(Tile("Peak memory", size(result["peak_memory_bytes"]), "", note))
    return tiles


# --- figures ----------------------------------------------------------------------------------


def _points(records: Sequence[Record], key: str) -> plots.Points:
    values = [r.get(key) for r in records]
    return (
        [float(r["step"]) for r in records],
        [float(v) if is_number(v) else math.nan for v in values],
    )


def _any(points: plots.Points) -> bool:
    return any(math.isfinite(value) for value in points[1])


def _held_out(run: RunFiles) -> list[Record]:
    """The evaluations; the one before training may be in result.json alone."""
    before = run.result.get("eval_loss_before")
    evals = list(run.evals)
    if is_number(before) and not (evals and evals[0]["step"] == 0):
        evals.insert(0, {"step": 0, "loss": before})
    return evals


def _figures(run: RunFiles, folder: Path) -> dict[str, Figure]:
    """The figures that the run's lines allow, by name; each is a PNG in `folder` as well."""
    made: dict[str, Figure] = {}
    train, held_out = _points(run.train, "loss"), _points(_held_out(run), "loss")
    if _any(train):
        best = run.result.get("best_step")
        wide = plots.learning_curve(train, held_out, best)
        narrow = plots.learning_curve(train, held_out, best, width=420)
        caption = "Loss of each step (faint), its moving mean, and the loss on held-out rows."
        said = f"{_said(train, 'Training loss')} {_said(held_out, 'Held-out loss')}".strip()
        write_png(wide, folder / "learning_curve.png")
        made["learning_curve"] = Figure(
            svg(wide, "curve", "Learning curve", said),
            caption,
            svg(narrow, "curve-narrow", "Learning curve", said),
        )
    rates, norms = _points(run.train, "learning_rate"), _points(run.train, "grad_norm")
    if _any(rates) or _any(norms):
        caption = "Learning rate, and the gradient's norm before clipping."
        said = f"{_said(rates, 'Learning rate')} {_said(norms, 'Gradient norm')}".strip()
        drawing = plots.schedule(rates, norms)
        made["schedule"] = _one(
            drawing, "schedule", "Learning rate and gradient norm", said, caption, folder
        )
    speeds = _points(run.train, "real_tokens_per_second")
    if _any(speeds):
        caption = "Real tokens per second of each step; padding is not counted."
        drawing = plots.throughput(speeds)
        made["throughput"] = _one(
            drawing, "throughput", "Throughput", _said(speeds, "Throughput"), caption, folder
        )
    return made


def _one(drawing: Drawing, name: str, title: str, said: str, caption: str, folder: Path) -> Figure:
    write_png(drawing, folder / f"{name}.png")
    return Figure(svg(drawing, name, title, said), caption)


def _said(points: plots.Points, name: str) -> str:
    """A curve in words, for who cannot see it."""
    known = [(s, v) for s, v in zip(*points, strict=True) if math.isfinite(v)]
    if not known:
        return ""
    (first, start), (last, end) = known[0], known[-1]
    return f"{name}: {number(start, 3)} at step {first:g}, {number(end, 3)} at step {last:g}."


# --- tables -----------------------------------------------------------------------------------


def _evals(run: RunFiles) -> list[tuple[str, str, str]]:
    best = run.result.get("best_step")
    return [
        (count(r["step"]), loss(r.get("loss")), _eval_note(r["step"], best)) for r in _held_out(run)
    ]


def _eval_note(step: int, best: Any) -> str:
    return "before training" if step == 0 else "best, kept" if step == best else ""


def _scores(result: Record) -> list[dict[str, Any]]:
    before, after = result.get("scores_before") or {}, result.get("scores_after") or {}
    rows = []
    for name in dict.fromkeys([*after, *before]):
        old, new = before.get(name), after.get(name)
        change = score_change(name, old, new)
        rows.append(
            {
                "name": score_name(name),
                "before": score_value(name, old),
                "after": score_value(name, new),
                "change": change,
                "word": _word(change),
                "from": score_share(name, old),
                "to": score_share(name, new),
            }
        )
    return rows


def _word(change: str) -> str:
    """Higher is better for every score."""
    return {"+": "better", "\u2212": "worse"}.get(change[0], "" if change == DASH else "same")


def _forecast(result: Record) -> list[tuple[str, str, str, str]]:
    expected = result.get("forecast") or {}
    rows = []
    for key, name, show in (
        ("seconds", "time", duration),
        ("peak_memory_bytes", "peak memory", size),
    ):
        if key in expected:
            guess, real = expected[key], result.get(key)
            known = is_number(guess) and is_number(real) and guess > 0
            off = f"{signed(100 * (real / guess - 1), 0)}\u00a0%" if known else DASH
            rows.append((name, show(guess), show(real), off))
    if is_number(expected.get("flops_per_token")):
        work = f"{number(expected['flops_per_token'] / 1e9, 3)}\u00a0GFLOP"
        rows.append(("work for a token", work, DASH, DASH))
    return rows


_FACTS = {
    "adapter": "adapter",
    "rank": "rank",
    "alpha": "alpha",
    "targets": "targets",
    "learning_rate": "learning rate",
    "rows": "training rows",
    "eval_rows": "held-out rows",
    "steps": "steps",
    "best_step": "best step",
    "stopped_early": "stopped early",
    "seed": "seed",
}


def _facts(result: Record) -> list[tuple[str, str]]:
    return [(label, _plain(result[key])) for key, label in _FACTS.items() if key in result]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else number(value)


def _pairs(values: Any) -> list[tuple[str, str]]:
    """The entries of a mapping; a name in _bytes is shown as a size."""
    if not isinstance(values, dict):
        return []
    return [
        (
            key.removesuffix("_bytes").replace("_", " "),
            size(v) if key.endswith("_bytes") else _plain(v),
        )
        for key, v in values.items()
    ]


def _layers(layers: Sequence[Record]) -> list[dict[str, Any]]:
    """The adapted modules, those that differ by their number alone in one row.

    A layer has path, in_features, out_features, rank and trainable (parameters of A and B).
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for layer in layers:
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", str(layer.get("path", DASH)))
        shape = (layer.get("in_features"), layer.get("out_features"), layer.get("rank"))
        groups.setdefault((pattern, *shape), []).append(layer)
    sums = {
        key: sum(one["trainable"] for one in some if is_number(one.get("trainable")))
        for key, some in groups.items()
    }
    whole = sum(sums.values())
    return [
        {
            "path": key[0],
            "number": len(some),
            "shape": f"{count(key[1])} → {count(key[2])}",
            "rank": count(key[3]),
            "trainable": count(sums[key]),
            "share": sums[key] / whole if whole else 0.0,
        }
        for key, some in groups.items()
    ]


def _command(result: Record, run: RunFiles) -> str:
    command = result.get("command")
    if isinstance(command, list | tuple):
        return shlex.join(map(str, command))
    return str(command) if command else "lorakit train config.yaml" if run.config else ""
