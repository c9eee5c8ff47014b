"""The tiles and tables of a search's page, as text in cells."""

from typing import Any

from lorakit.report.numbers import count, loss, number, percent, signed
from lorakit.report.rank_read import RankFiles
from lorakit.report.read import Record
from lorakit.report.run_tables import Tile

_KINDS = {
    "lowest": "the lowest candidate",
    "needed": "a larger one than the lowest",
    "unsaturated": "the highest candidate, and better than the next",
}


def tiles(files: RankFiles) -> list[Tile]:
    """The figures that a reader wants first."""
    result = files.result
    share = result["trainable_parameters"] / result["parameters_of_max_rank"]
    return [
        Tile("Rank", count(result["recommended_rank"]), "", _KINDS[result["kind"]]),
        Tile(
            "Held-out loss", loss(result["loss"]), "nats per token",
            f"{loss(result['base_loss'])} before training",
        ),
        *_beside(result),
        Tile(
            "Parameters", count(result["trainable_parameters"]), "",
            f"{percent(share, 0)} of rank {max(result['ranks'])}'s",
        ),
        Tile("Learning rate", number(result["learning_rate"]), "", "of the probe"),
        Tile(
            "Cost", number(result["cost"]["runs"], 2), "runs",
            f"at the highest rank; forecast: at most {number(result['cost']['at_most'], 2)}",
        ),
    ]  # fmt: skip


def _beside(result: Record) -> list[Tile]:
    """What may be said of the recommended rank beside the reference."""
    gap = result["gaps"].get(str(result["recommended_rank"]))
    if gap is None:
        return []
    confidence = result["confidence"]
    likely = (
        f"{percent(confidence, 0)} likely to be within the tolerance"
        if confidence is not None
        else "with so short a search nothing is said"
    )
    return [Tile(f"Beside rank {result['reference']}", gap["verdict"]["word"], "", likely)]


def gaps(files: RankFiles) -> list[tuple[str, ...]]:
    """Each rank that was compared, paired with the reference after the same steps."""
    return [
        (
            rank,
            "whole run" if d["share"] >= 1 else f"{percent(d['share'], 0)} of a run",
            *(_nats(d[name]) for name in ("mean", "low", "high")),
            f"±{number(d['verdict']['margin'], 2)}",
            str(d["verdict"]["word"]),
        )
        for rank, d in files.result["gaps"].items()
    ]


def evidence(files: RankFiles) -> list[tuple[str, list[tuple[str, ...]]]]:
    """All that was measured: a table for each length of run, since losses of others are not comparable."""
    made: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for e in files.result["evidence"]:
        length = "the whole run" if e["share"] == 1 else f"{percent(e['share'], 0)} of a run"
        row = (count(e["rank"]), count(e["rows"]), loss(e["loss"]), count(e["parameters"]))
        made.setdefault((length, str(e["how"])), []).append(row)
    return [(f"After {length}, {how}", rows) for (length, how), rows in made.items()]


def grid(files: RankFiles) -> list[tuple[str, ...]]:
    """The whole grid, where it was trained."""
    whole = files.result["grid"] or {"losses": []}
    return [
        (count(each["rank"]), number(each["rate"]), ", ".join(loss(x) for x in each["losses"]))
        for each in whole["losses"]
    ]


def layers(files: RankFiles) -> list[tuple[str, str]]:
    """Rank of each module, where ranks by layer were tried."""
    by_layer = files.result["layers"]
    return [(path, count(rank)) for path, rank in by_layer["ranks"].items()] if by_layer else []


def facts(files: RankFiles) -> list[tuple[str, str]]:
    """The search's settings, by name."""
    result = files.result
    prior = result["prior"]
    return [
        ("method", str(result["method"])),
        ("candidates", ", ".join(map(str, result["ranks"]))),
        ("margin, within which ranks count as equal", str(result["margin"]["words"])),
        ("tolerance, by which the search goes on", str(result["tolerance"]["words"])),
        ("level of the bounds that it goes on by", percent(result["level"], 0)),
        ("training rows", count(result["rows"])),
        ("held-out rows", count(result["eval_rows"])),
        ("steps of a run", count(result["steps"])),
        (
            "prior",
            f"{number(prior['bits'] / 1000, 3)} kbit under the base: rank {number(prior['rank'], 2)} "
            f"at {number(prior['bits_a_parameter'])} bits a parameter (decides nothing)",
        ),
    ]


def _nats(value: Any) -> str:
    return signed(value, 4)
