"""Result files -> the tables of the documents.

    python benchmarks/tables.py            # print every table
    python benchmarks/tables.py --write    # and put them into the pages that have a place for them

A place is what stands between `<!-- measured: NAME -->` and `<!-- end of measured -->` in a page;
tests/test_benchmark_tables.py holds that it says what the result files say. Where something was
measured more than once, the command given last counts.
"""

import argparse
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import bench
from bench import Line, gigabytes, median, newest, table

ROOT = Path(__file__).parents[1]
PLACE = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end of measured -->)", re.DOTALL)
# TRL tuned to its best is the fastest of these.
TUNED = ("trl", "trl-grouped", "trl-flat")
MISSING = "not measured"


def speed(lines: Sequence[Line]) -> float:
    """Median real tokens/s over all steps that count."""
    return statistics.median(
        tokens / seconds
        for line in lines
        for tokens, seconds in zip(
            bench.after_first(line["tokens"]), bench.after_first(line["seconds"]), strict=True
        )
    )


def kinds(lines: Sequence[Line]) -> list[str]:
    """The kinds of rows measured, in the order of their first line."""
    return list(dict.fromkeys(line["rows"] for line in lines))


def peers(lines: Sequence[Line], kind: str) -> dict[str, tuple[list[Line], list[Line]]]:
    """Contender -> its lines, and lorakit's of the same command, with which it took turns."""
    names = dict.fromkeys(line["contender"] for line in lines if line["rows"] == kind)
    found = {}
    for name in names:
        theirs = newest(lines, rows=kind, contender=name)
        ours = newest(lines, rows=kind, contender="lorakit", date=theirs[0]["date"])
        found[name] = theirs, ours or newest(lines, rows=kind, contender="lorakit")
    return found


def described(lines: Sequence[Line], kind: str) -> str:
    """The rows with their mean length: 'e2e (62 tokens)'."""
    last = newest(lines, rows=kind, contender="lorakit")[0]
    return f"{kind} ({last['mean_length']:.0f} tokens)"


def fraction(theirs: Sequence[Line], ours: Sequence[Line]) -> float:
    """Of the limit: F · tokens/s over the matmul rate."""
    return speed(theirs) * median(theirs, "flops_per_token") / median(ours, "matmul_flops")


def contenders(lines: Sequence[Line]) -> str:
    """One row a contender."""
    head = ("rows", "who", "dtype", "real tokens/s", "lorakit / it", "fraction of the limit")
    rows = []
    for kind in kinds(lines):
        for name, (theirs, ours) in peers(lines, kind).items():
            losses = [f"{x['held_out_loss']:.4f}" for x in theirs if "held_out_loss" in x]
            rows.append(
                (
                    *(described(lines, kind), name, theirs[0]["dtype"], f"{speed(theirs):.0f}"),
                    *(f"{speed(ours) / speed(theirs):.2f}", f"{fraction(theirs, ours):.2f}"),
                    *(gigabytes(median(theirs, "peak_memory_bytes")), ", ".join(losses)),
                )
            )
    return table((*head, "peak memory", "held-out loss by seed"), rows)


def goals(lines: Sequence[Line]) -> str:
    """lorakit against the careful peft loop and TRL at its best."""
    head = ("rows", "lorakit / careful peft loop", "lorakit / TRL tuned", "fraction of the limit")
    rows = []
    for kind in kinds(lines):
        found = peers(lines, kind)
        tuned = [against for name, against in found.items() if name in TUNED]
        best = max(tuned, key=lambda pair: speed(pair[0]), default=None)
        loop, ours = found.get("peft"), newest(lines, rows=kind, contender="lorakit")
        rows.append(
            (
                described(lines, kind),
                f"{speed(loop[1]) / speed(loop[0]):.2f}" if loop else MISSING,
                f"{speed(best[1]) / speed(best[0]):.2f}" if best else MISSING,
                f"{fraction(ours, ours):.2f}",
                f"{_memory(loop[1], loop[0]):.2f}" if loop else MISSING,
                _apart(found),
            )
        )
    last = ("peak memory / careful peft loop", "largest difference of a held-out loss")
    return table((*head, *last), rows)


def _memory(ours: Sequence[Line], theirs: Sequence[Line]) -> float:
    return median(ours, "peak_memory_bytes") / median(theirs, "peak_memory_bytes")


def _apart(found: dict[str, tuple[list[Line], list[Line]]]) -> str:
    """How far apart those who take the same steps end, over the seeds."""
    by_seed: dict[int, list[float]] = {}
    for name in ("lorakit", "peft", "trl"):
        for line in found.get(name, ([], []))[0]:
            if "held_out_loss" in line:
                by_seed.setdefault(line["seed"], []).append(line["held_out_loss"])
    apart = [max(x) / min(x) - 1 for x in by_seed.values() if len(x) > 1]
    return f"{max(apart):.2%}" if apart else MISSING


def full(lines: Sequence[Line]) -> str:
    """LoRA in lorakit against training every weight, by either loop."""
    head = (
        "rows",
        "full fine-tuning by",
        "peak memory, LoRA / full",
        "time of a token, LoRA / full",
    )
    rows = [
        (
            described(lines, kind),
            "lorakit" if name == "lorakit-full" else "a plain loop",
            f"{_memory(ours, theirs):.2f}",
            f"{speed(theirs) / speed(ours):.2f}",
        )
        for kind in kinds(lines)
        for name, (theirs, ours) in peers(lines, kind).items()
        if name in ("full", "lorakit-full")
    ]
    return table(head, rows) if rows else f"Full fine-tuning: {MISSING}."


def origin(lines: Sequence[Line]) -> str:
    """Where lines come from: machine, versions, and the commands to repeat them."""
    last = max(lines, key=lambda line: line["date"])
    machine, versions = last["machine"], {}
    for line in lines:
        versions |= line["versions"]
    names = ("lorakit", "torch", "transformers", "peft", "trl")
    said = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    commands = dict.fromkeys(line["command"] for line in lines)
    return (
        f"{machine['cpu']}, {machine['cores']} cores; {said}; {last['date'][:10]}:\n\n"
        + "```\n"
        + "".join(f"{command}\n" for command in commands)
        + "```"
    )


def _counted(lines: Sequence[Line]) -> list[Line]:
    """Without what a later command has measured again."""
    return [
        line
        for kind in kinds(lines)
        for theirs, _ in peers(lines, kind).values()
        for line in theirs
    ]


def speed_section(lines: Sequence[Line]) -> str:
    """All of benchmarks/train_speed.py."""
    parts = goals(lines), full(lines), contenders(lines), origin(_counted(lines))
    return "\n\n".join(parts)


SECTIONS: dict[str, tuple[str, Callable[[Sequence[Line]], str]]] = {
    "speed": ("train_speed.jsonl", speed_section),
}


def render(name: str) -> str:
    """A section as it stands in a page."""
    file, section = SECTIONS[name]
    lines = bench.read(bench.RESULTS / file)
    return section(lines) if lines else f"{file}: {MISSING}."


def filled(page: str) -> str:
    """The text of a page with every place filled."""
    return PLACE.sub(lambda place: f"{place[1]}{render(place[2])}\n{place[3]}", page)


def pages() -> list[Path]:
    """The documents that have a place."""
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    return [page for page in documents if PLACE.search(page.read_text(encoding="utf-8"))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="fill the places in the pages")
    options = parser.parse_args()
    for name in SECTIONS:
        print(f"{render(name)}\n")
    if options.write:
        for page in pages():
            page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
