"""The tables of zoo.py: what works with each causal architecture of transformers, and what does not."""

from collections import Counter
from collections.abc import Sequence

import bench
from bench import Line


def latest(lines: Sequence[Line]) -> list[Line]:
    """The newest line of each architecture, by name."""
    return sorted({line["name"]: line for line in lines}.values(), key=lambda line: line["name"])


def way(line: Line) -> str:
    """How a batch is trained: packed (fused, or with modules by sequence), padded, or alone."""
    facts = line["facts"]
    said = str(facts.get("way", ""))
    if said == "packed" and facts.get("fused"):
        return "packed, fused"
    return "packed, mixers by sequence" if said == "packed" and facts.get("by_sequence") else said


def mark(line: Line, check: str) -> str:
    """One check in a cell."""
    text = line["checks"].get(check, "")
    return {"right": "yes", "refused": "no", "": ""}.get(text.split(":")[0], "**wrong**")


def served(line: Line) -> str:
    """Whether and by what a mixed batch is answered."""
    said = mark(line, "serves")
    by = {"LeanBlocks": "lean steps", "OwnBlocks": "packed steps"}
    return by.get(line["facts"].get("served_by", ""), "one by one") if said == "yes" else said


def rows(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """A row for each architecture."""
    found = []
    for line in lines:
        facts, plan = line["facts"], line.get("plan") or {}
        experts = facts.get("experts")
        found.append(
            (
                f"`{line['name']}`",
                line["verdict"],
                f"{facts['share']:.0%}" if "share" in facts else "",
                "" if experts is None else ("yes" if experts else "no"),
                f"{plan['modules']:,}" if "modules" in plan else "",
                *(way(line), mark(line, "generates"), mark(line, "peft"), mark(line, "merges")),
                served(line),
            )
        )
    return found


def reasons(lines: Sequence[Line]) -> str:
    """What is refused or wrong, and the words that say why."""
    said = []
    for line in lines:
        for check, text in line["checks"].items():
            if text != "right":
                words = " ".join(text.split())
                said.append(f"- `{line['name']}`, {check}: {words[:400]}")
    return "\n".join(said)


def counts(lines: Sequence[Line]) -> str:
    """How many, in a table."""
    verdicts = Counter(line["verdict"] for line in lines)
    ways = Counter(way(line).split(",")[0] for line in lines if way(line))
    right = [line for line in lines if line["checks"].get("serves") == "right"]
    said = {
        "examined": len(lines),
        "right in everything but serving": verdicts["right"],
        "trained right, and something later is refused": verdicts["partly"],
        "refused with the reason": verdicts["refused"],
        "wrong": verdicts["WRONG"],
        "transformers' own code fails": verdicts["oracle"],
        "trained packed": ways["packed"],
        "trained padded": ways["padded"],
        "trained one row at a time": ways["alone"],
        "served right": len(right),
    }
    return bench.table(("", "architectures"), [(k, str(v)) for k, v in said.items()])


def page(lines: Sequence[Line]) -> str:
    """Counts, one row an architecture, variants apart, and the reasons."""
    every = latest(lines)
    named = [line for line in every if "+" not in line["name"]]
    variants = [line for line in every if "+" in line["name"]]
    head = (
        *("architecture", "verdict", "adapted", "experts adapted", "modules at its own sizes"),
        *("trains", "generates", "peft reads it", "merges", "served by"),
    )
    versions = named[0]["versions"]
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    days = sorted({line["date"][:10] for line in every})
    return "\n\n".join(
        (
            f"{said}; {days[-1]}:",
            counts(named),
            bench.table(head, rows(named)),
            "Settings that are not an architecture's default:",
            bench.table(head, rows(variants)),
            "## What is refused, and why",
            reasons(every) or "Nothing.",
        )
    )
