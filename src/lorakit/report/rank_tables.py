"""The tiles and tables of a search's page, as text in cells."""

from typing import Any

from lorakit.report.numbers import count, loss, number, percent, signed
from lorakit.report.rank_read import RankFiles
from lorakit.report.run_tables import Tile

_KINDS = {
    "indistinguishable": "all ranks alike",
    "needed": "lower ranks are worse",
    "unsaturated": "not saturated",
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
        Tile("Confidence", percent(result["confidence"], 0), "", "that the rank is within the margin"),
        Tile(
            "Parameters", count(result["trainable_parameters"]), "",
            f"{percent(share, 0)} of rank {max(result['ranks'])}'s",
        ),
        Tile("Learning rate", number(result["learning_rate"]), "", "of the probe"),
        Tile("Cost", number(result["cost"]["runs"], 2), "runs", "at the highest rank"),
    ]  # fmt: skip


def gaps(files: RankFiles) -> list[tuple[str, ...]]:
    """Each rank that was compared, paired with the reference."""
    return [
        (rank, _nats(d["mean"]), _nats(d["low"]), _nats(d["high"]), str(d["state"]))
        for rank, d in files.result["gaps"].items()
    ]


def evidence(files: RankFiles) -> list[tuple[str, ...]]:
    """All that was measured."""
    return [
        (
            count(e["rank"]),
            str(e["how"]),
            percent(e["share"], 0),
            count(e["rows"]),
            loss(e["loss"]),
            count(e["parameters"]),
        )
        for e in files.result["evidence"]
    ]


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
        ("tolerance", str(result["tolerance"]["words"])),
        ("certainty of a bound", percent(result["level"], 0)),
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
