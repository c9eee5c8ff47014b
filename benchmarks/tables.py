"""Result files -> the tables of the documents.

    python benchmarks/tables.py            # print every table
    python benchmarks/tables.py --write    # and put them into the pages that have a place for them

A place is what stands between `<!-- measured: NAME -->` and `<!-- end of measured -->` in a page.
README.md has the short tables, docs/measured.md the whole ones. tests/test_benchmark_tables.py
holds that a place says what the result files say. Where something was measured more than once on a
machine, the command given last counts. Figures of two machines never share a row.
"""

import argparse
import math
import re
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import bench
import compare_examples
import go_on_table
import noise
import rank_regret_table
import trials
import zoo_table
from bench import Line, gigabytes, median, newest, table

ROOT = Path(__file__).parents[1]
PLACE = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end of measured -->)", re.DOTALL)
# TRL tuned to its best is the fastest of these.
TUNED = ("trl", "trl-grouped", "trl-flat", "trl-split")
# The careful peft loop at its best is the faster of these.
LOOPS = ("peft", "peft-split")
MISSING = "not measured"
# Mean tokens of a training row of rank_regret.py, as `lorakit check` counts them.
RANK_TOKENS = {"snips": 51, "e2e": 58, "banking77": 22, "gsm8k": 188, "keys": 13}


def speed(lines: Sequence[Line]) -> float:
    """Real tokens over seconds of the steps that count; median over runs."""
    return statistics.median(
        sum(bench.after_first(line["tokens"])) / sum(bench.after_first(line["seconds"]))
        for line in lines
    )


def kinds(lines: Sequence[Line]) -> list[str]:
    """The kinds of rows measured, in the order of their first line."""
    return list(dict.fromkeys(line["rows"] for line in lines))


def peers(
    lines: Sequence[Line], kind: str, us: str = "lorakit"
) -> dict[str, tuple[list[Line], list[Line]]]:
    """Contender -> its lines, and ours of the same command, with which it took turns."""
    names = dict.fromkeys(line["contender"] for line in lines if line["rows"] == kind)
    found = {}
    for name in names:
        theirs = newest(lines, rows=kind, contender=name)
        ours = newest(lines, rows=kind, contender=us, date=theirs[0]["date"])
        found[name] = theirs, ours or newest(lines, rows=kind, contender=us)
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
    head = (
        "rows (tokens a row)",
        "who",
        "dtype",
        "real tokens/s",
        "lorakit / it",
        "fraction of the limit",
    )
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
    """lorakit against the careful peft loop, like with like, and against TRL at its best."""
    head = (
        *("rows", "a step's rows", "lorakit / careful peft loop", "lorakit / TRL tuned"),
        *("fraction of the limit", "peak memory / careful peft loop"),
        "largest difference of a held-out loss",
    )
    rows = []
    for kind in kinds(lines):
        for suffix, said in (("", "at once"), ("-split", "in parts")):
            found = peers(lines, kind, f"lorakit{suffix}")
            if f"lorakit{suffix}" not in found:
                continue
            tuned = {name: _ratio(*found[name]) for name in TUNED if name in found}
            best = min(tuned, key=tuned.__getitem__, default="")
            # Beside the loop, with which ours took turns; without one what was measured last.
            loop, ours = found.get(f"peft{suffix}", ([], found[f"lorakit{suffix}"][0]))
            rates = newest(lines, rows=kind, contender="lorakit", date=ours[0]["date"])
            rates = rates or newest(lines, rows=kind, contender="lorakit")
            rows.append(
                (
                    *(described(lines, kind), said),
                    f"{_ratio(loop, ours):.2f}" if loop else MISSING,
                    f"{tuned[best]:.2f} ({best})" if best else MISSING,
                    f"{fraction(ours, rates):.2f}",
                    f"{_memory(ours, loop):.2f}" if loop else MISSING,
                    _apart(found, suffix),
                )
            )
    return table(head, rows)


def _ratio(theirs: Sequence[Line], ours: Sequence[Line]) -> float:
    return speed(ours) / speed(theirs)


def _memory(ours: Sequence[Line], theirs: Sequence[Line]) -> float:
    return median(ours, "peak_memory_bytes") / median(theirs, "peak_memory_bytes")


def _apart(found: dict[str, tuple[list[Line], list[Line]]], suffix: str) -> str:
    """How far apart those who take the same steps and turns end, over the seeds."""
    by_seed: dict[int, list[float]] = {}
    for name in ("peft", "trl"):
        theirs, ours = found.get(name + suffix, ([], []))
        for line in (*theirs, *ours):
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


def growth(lines: Sequence[Line]) -> str:
    """One table a sweep of benchmarks/growth.py."""
    parts = []
    for sweep in dict.fromkeys(line["sweep"] for line in lines):
        last = newest(lines, sweep=sweep)
        points = _points(last)
        # One rate for all points: a single process may have met a busy machine.
        limit = median([line["forecast"] for line in last], "matmul_flops")
        first = next(iter(points.values()))
        at_rank_8 = points.get(8, first) if sweep == "rank" else first
        rows = []
        for value, point in points.items():
            flops = point[0]["forecast"]["flops_per_token"]
            row = [f"{value:,}", f"{speed(point):.0f}", f"{speed(point) * flops / limit:.2f}"]
            if sweep == "rank":
                ratio = at_rank_8[0]["forecast"]["flops_per_token"] / flops
                said = speed(at_rank_8) * ratio
                row += [f"{said:.0f}", f"{speed(point) / said:.2f}"]
            rows.append([*row, gigabytes(median(point, "peak_memory_bytes"))])
        by_rank = ["F says, from rank 8", "measured / that"] if sweep == "rank" else []
        head = [sweep, "real tokens/s", "fraction of the limit", *by_rank, "peak memory"]
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def forecast(lines: Sequence[Line]) -> str:
    """What was forecast beside what came."""
    head = (
        *("rank", "length", "rows a step", "memory: forecast", "measured", "ratio"),
        *("time: forecast", "measured", "ratio"),
    )
    rows = []
    for point in _points(newest(lines, sweep="forecast")).values():
        said = [line["forecast"] for line in point]
        memory, memory_came = median(said, "peak_memory_bytes"), median(point, "peak_memory_bytes")
        time, time_came = median(said, "seconds"), median(point, "all_seconds")
        rows.append(
            (
                *(str(point[0][name]) for name in ("rank", "length", "batch_size")),
                *(gigabytes(memory), gigabytes(memory_came), f"{memory / memory_came:.2f}"),
                *(f"{time:.1f} s", f"{time_came:.1f} s", f"{time / time_came:.2f}"),
            )
        )
    return table(head, rows)


def _points(lines: Sequence[Line]) -> dict[int, list[Line]]:
    values = dict.fromkeys(line["value"] for line in lines)
    return {value: [line for line in lines if line["value"] == value] for value in values}


def startup(lines: Sequence[Line]) -> str:
    """benchmarks/startup.py."""
    lines = newest(lines)
    rows = []
    for what in dict.fromkeys(line["what"] for line in lines):
        runs = [line for line in lines if line["what"] == what]
        steps = runs[0]["step_seconds"] is not None
        step = f"{median(runs, 'step_seconds'):.2f} s" if steps else ""
        rows.append((what, f"{median(runs, 'seconds'):.2f} s", step))
    return table(("command", "to the end of the first step", "of which the step"), rows)


def busy(lines: Sequence[Line]) -> str:
    """benchmarks/busy.py: medians over rounds; the last contender is held against, quiet."""
    lines = newest(lines)
    loads = sorted({line["beside"] for line in lines})
    names = list(dict.fromkeys(line["contender"] for line in lines))

    def speeds(name: str, beside: int) -> list[float]:
        runs = [x for x in lines if (x["contender"], x["beside"]) == (name, beside)]
        return [x["tokens_per_second"] for x in sorted(runs, key=lambda x: x["round"])]

    head, rows = ["contender"], []
    for beside in loads:
        head += ["quiet, tokens/s", "/ last"] if beside == 0 else [f"beside {beside}", "/ quiet"]
        head += ["/ peft"] if "peft" in names and beside else []
    for name in names:
        row = [name]
        for beside in loads:
            own = statistics.median(speeds(name, beside))
            row.append(f"{own:.0f}")
            if beside == 0:
                row.append(paired(speeds(name, 0), speeds(names[-1], 0)))
            else:
                row.append(f"{own / statistics.median(speeds(name, 0)):.2f}" if 0 in loads else "")
                if "peft" in names:
                    row.append(f"{own / statistics.median(speeds('peft', beside)):.2f}")
        rows.append(row)
    return table(head, rows)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The ratio over rounds, geometric mean, and the lower end of its 95 % interval."""
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    ratio = math.exp(statistics.fmean(logs))
    if len(logs) < 2 or ours == theirs:
        return f"{ratio:.2f}"
    from scipy.stats import t

    reach = t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return f"{ratio:.2f}, at least {math.exp(statistics.fmean(logs) - reach):.2f}"


def quick(lines: Sequence[Line]) -> str:
    """benchmarks/startup.py --quick: medians of the newest command."""
    lines = newest(lines)
    rows = []
    for what in dict.fromkeys(line["what"] for line in lines):
        runs = [line for line in lines if line["what"] == what]
        seconds, processor = (median(runs, name) for name in ("seconds", "processor_seconds"))
        rows.append((f"`{what}`", f"{seconds:.2f} s", f"{processor:.2f} s"))
    return table(("command", "until it is answered", "of the processor"), rows)


def short_speed(lines: Sequence[Line]) -> str:
    """README's table: lorakit beside the fastest measured way of each peer."""
    head = (
        *("rows (tokens a row)", "machine", "lorakit", "lorakit / peft", "lorakit / TRL"),
        "peak memory, lorakit / peft",
    )
    rows = []
    for cpu, own in machines(lines).items():
        for kind in kinds(own):
            found = peers(own, kind)
            peft, trl = (_fastest(found, names) for names in (LOOPS, TUNED))
            ours = found["peft"][1]
            rows.append(
                (
                    described(own, kind),
                    f"{named(cpu)}, {ours[0]['machine']['cores']} cores, {ours[0]['dtype']}",
                    f"{speed(ours):.0f} tokens/s",
                    *(f"{_ratio(*peft):.2f} ×", f"{_ratio(*trl):.2f} ×"),
                    f"{_memory(peft[1], peft[0]):.2f} ×",
                )
            )
    return table(head, rows)


def _fastest(
    found: dict[str, tuple[list[Line], list[Line]]], names: Sequence[str]
) -> tuple[list[Line], list[Line]]:
    """Of a peer's ways the fastest one, and our lines of its command."""
    return max((found[name] for name in names if name in found), key=lambda pair: speed(pair[0]))


def named(cpu: str) -> str:
    """A processor's name without what makers put around it."""
    return re.sub(r"\(R\)| Processor", "", cpu)


def serving(lines: Sequence[Line]) -> str:
    """README's table of benchmarks/serve.py: one row for each number of adapters."""
    contenders = (
        *(("lorakit", "lorakit, over HTTP"), ("peft", "peft's mixed batch")),
        *(("batch 32", "transformers' `generate`"), ("vllm", "vLLM's CPU build, offline")),
    )
    counts = sorted({line["adapters"] for line in lines})
    rows = []
    for count in counts:
        row = [str(count)]
        for what, _ in contenders:
            own = newest(lines, what=what, adapters=count)
            row.append(f"{median(own, 'tokens_per_second'):.0f} tokens/s" if own else "")
        rows.append(row)
    return table(["adapters", *(name for _, name in contenders)], rows)


def short_compare() -> str:
    """README's table of the committed comparisons: LoRA beside full fine-tuning."""
    head = (
        *("rows (tokens a row)", "loss, full", "loss, LoRA", "difference (95 % interval)"),
        *("parameters", "memory", "time of a step", "verdict"),
    )
    rows = []
    for name, made in compare_examples.results():
        arms = {arm["name"]: arm for arm in made["arms"]}
        length = made["tokens_per_step"] / made["protocol"]["batch_size"]
        for between in made["differences"]:
            arm, full = arms[between["arm"]], arms[between["against"]]
            (loss, word), cost = compare_examples.judged(made, between), between["measured"]
            rows.append(
                (
                    f"[{name}](docs/examples/compare-{name}.html) ({length:.0f} tokens)",
                    *(f"{each['loss']['mean']:.3f}" for each in (full, arm)),
                    f"{loss['mean']:+.3f} ({loss['low']:+.3f} to {loss['high']:+.3f})",
                    f"{1 - between['fewer_parameters']:.3f} ×",
                    f"{cost['peak_memory_bytes_share']:.2f} ×",
                    f"{cost['seconds_per_step_share']:.2f} ×",
                    word,
                )
            )
    return table(head, rows)


def short_ranks(lines: Sequence[Line]) -> str:
    """README's table of rank_regret.py: what the default search recommends, by seed."""
    head = (
        *("rows (tokens a row)", "recommended rank, by seed"),
        *("its adapter's loss beside the best of the grid", "seed noise", "cost in runs"),
    )
    rows = []
    found = [row for row in rank_regret_table.rows(lines) if row.who == "bracket"]
    for task in dict.fromkeys(row.task for row in found):
        own = sorted((row for row in found if row.task == task), key=lambda row: row.seed)
        losses = [row.adapter for row in own if row.adapter is not None]
        rows.append(
            (
                f"{task} ({RANK_TOKENS[task]} tokens)",
                ", ".join(str(row.rank) for row in own),
                ", ".join(f"{loss / own[0].best - 1:+.1%}" for loss in losses),
                f"{own[0].noise / own[0].best:.1%}",
                ", ".join(f"{row.cost:.1f}" for row in own),
            )
        )
    return table(head, rows)


def of_file(file: str, section: Callable[[Sequence[Line]], str]) -> str:
    """A section of a result file's lines, whatever machine they come from."""
    lines = bench.read(bench.RESULTS / file)
    return section(lines) if lines else f"{file}: {MISSING}."


def by_machine(file: str, section: Callable[[Sequence[Line]], str]) -> str:
    """A section for each machine, under its name where there are several."""
    found = machines(bench.read(bench.RESULTS / file))
    parts = [
        (f"**{cpu}**\n\n" if len(found) > 1 else "") + section(lines)
        for cpu, lines in found.items()
    ]
    return "\n\n".join(parts) or f"{file}: {MISSING}."


def _with_origin(section: Callable[[Sequence[Line]], str], lines: Sequence[Line]) -> str:
    return f"{section(lines)}\n\n{origin(lines)}"


SECTIONS: dict[str, Callable[[], str]] = {
    "speed": partial(by_machine, "train_speed.jsonl", speed_section),
    "growth": partial(by_machine, "growth.jsonl", partial(_with_origin, growth)),
    "forecast": partial(
        by_machine, "forecast.jsonl", lambda lines: f"{forecast(lines)}\n\n{origin(newest(lines))}"
    ),
    "startup": partial(
        by_machine, "startup.jsonl", lambda lines: f"{startup(lines)}\n\n{origin(newest(lines))}"
    ),
    "trials": partial(by_machine, "trials.jsonl", partial(_with_origin, trials.table)),
    "quick": partial(
        by_machine, "quick.jsonl", lambda lines: f"{quick(lines)}\n\n{origin(newest(lines))}"
    ),
    "compare": compare_examples.table,
    "go_on": partial(of_file, "go_on.jsonl", partial(_with_origin, go_on_table.table)),
    "short_speed": partial(of_file, "train_speed.jsonl", short_speed),
    "short_serving": partial(of_file, "serve.jsonl", serving),
    "short_compare": short_compare,
    "models": partial(of_file, "zoo.jsonl", zoo_table.page),
    "noise": partial(of_file, "noise.jsonl", noise.table),
    "short_ranks": partial(of_file, "rank_regret.jsonl", short_ranks),
}


def machines(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines by the processor they were measured on, the one measured last first."""
    last_first = sorted(lines, key=lambda line: line["date"], reverse=True)
    names = dict.fromkeys(line["machine"]["cpu"] for line in last_first)
    return {cpu: [line for line in lines if line["machine"]["cpu"] == cpu] for cpu in names}


def filled(page: str) -> str:
    """The text of a page with every place filled."""
    return PLACE.sub(lambda place: f"{place[1]}{SECTIONS[place[2]]()}\n{place[3]}", page)


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
        print(f"{SECTIONS[name]()}\n")
    if options.write:
        for page in pages():
            page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
