"""The tiles and tables of a run's page, as text in cells."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.adapters.measurements import score_name
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
from lorakit.report.read import Record, RunFiles
from lorakit.report.wording import (
    first_score,
    score_change,
    score_share,
    score_value,
    score_verdict,
)


@dataclass(frozen=True)
class Tile:
    """A headline figure: its name, value, unit, and a line under it."""

    name: str
    value: str
    unit: str = ""
    note: str = ""


def tiles(result: Record) -> list[Tile]:
    """The figures that a reader wants first; a figure that was not recorded is left out."""
    tiles = []
    nats = "nats per token"
    if result.get("eval_loss") is not None:
        before = result.get("eval_loss_before")
        note = f"{loss(before)} before training" if is_number(before) else ""
        tiles.append(Tile("Held-out loss", loss(result["eval_loss"]), nats, note))
    elif result.get("train_loss") is not None:
        tiles.append(Tile("Training loss", loss(result["train_loss"]), nats, "no rows held out"))
    before, after = result.get("scores_before") or {}, result.get("scores_after") or {}
    if (name := first_score(result)) is not None:
        note = f"{score_value(name, before[name])} before training" if name in before else ""
        title = score_name(name)
        tiles.append(Tile(title[0].upper() + title[1:], score_value(name, after[name]), "", note))
    if result.get("seconds") is not None:
        steps, stepping = result.get("steps"), result.get("train_seconds")
        note = f"{count(steps)} steps" if is_number(steps) else ""
        note += f" in {duration(stepping)}" if note and is_number(stepping) else ""
        tiles.append(Tile("Time", duration(result["seconds"]), "", note))
    if result.get("trainable_parameters") is not None:
        trained, total = result["trainable_parameters"], result.get("total_parameters")
        known = is_number(trained) and is_number(total) and total > 0
        note = f"{percent(trained / total)} of {count(total)}" if known else ""
        tiles.append(Tile("Parameters trained", count(trained), "", note))
    if result.get("real_tokens_per_second") is not None:
        share = result.get("fraction_of_limit")
        note = f"{percent(share, 0)} of this machine's matmul rate" if is_number(share) else ""
        speed = count(result["real_tokens_per_second"])
        tiles.append(Tile("Throughput", speed, "real tokens/s", note))
    if result.get("peak_memory_bytes") is not None:
        memory = (result.get("machine") or {}).get("memory_bytes")
        note = f"of {size(memory)}" if is_number(memory) else ""
        tiles.append(Tile("Peak memory", size(result["peak_memory_bytes"]), "", note))
    return tiles


def evals(run: RunFiles) -> list[tuple[str, str, str]]:
    """Step, held-out loss, and a word where there is one to say."""
    best = run.result.get("best_step")
    return [
        (count(r["step"]), loss(r.get("loss")), _eval_note(r["step"], best)) for r in run.held_out
    ]


def _eval_note(step: int, best: Any) -> str:
    return "before training" if step == 0 else "best, kept" if step == best else ""


def scores(result: Record) -> list[dict[str, Any]]:
    """Each score before and after, its change in figures and in a word, and both as shares."""
    before, after = result.get("scores_before") or {}, result.get("scores_after") or {}
    rows = []
    for name in dict.fromkeys([*after, *before]):
        old, new = before.get(name), after.get(name)
        rows.append(
            {
                "name": score_name(name),
                "before": score_value(name, old),
                "after": score_value(name, new),
                "change": score_change(name, old, new),
                "word": score_verdict(result, name),
                "from": score_share(name, old),
                "to": score_share(name, new),
            }
        )
    return rows


def forecast(result: Record) -> list[tuple[str, str, str, str]]:
    """Name, forecast, measurement, and how far the measurement is above the forecast."""
    expected = result.get("forecast") or {}
    rows = []
    # The forecast is of the steps alone; `seconds` counts loading and evaluations as well.
    stepping = result.get("train_seconds", result.get("seconds"))
    for key, name, real, show in (
        ("seconds", "time of the steps", stepping, duration),
        ("peak_memory_bytes", "peak memory", result.get("peak_memory_bytes"), size),
    ):
        if key in expected:
            guess = expected[key]
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


def facts(result: Record) -> list[tuple[str, str]]:
    """What was trained, on how much, by name; what the result does not say is left out."""
    return [
        (label, _plain(result[key])) for key, label in _FACTS.items() if result.get(key) is not None
    ]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else number(value)


def pairs(values: Any) -> list[tuple[str, str]]:
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


def layers(layers: Sequence[Record]) -> list[dict[str, Any]]:
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
