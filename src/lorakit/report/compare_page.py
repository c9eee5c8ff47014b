"""A comparison's page: what its files say, arranged for a manager and for a researcher."""

from pathlib import Path

from lorakit.evaluation.verdict import LEAST_ROWS
from lorakit.extras import no_page
from lorakit.report import compare_tables as tables
from lorakit.report import run_tables
from lorakit.report.answers import sample_of_many
from lorakit.report.compare_figures import compare_figures
from lorakit.report.compare_read import CompareFiles, read_compare
from lorakit.report.html import write_page
from lorakit.report.read import Record


def write_compare_report(folder: str | Path) -> Path | None:
    """Write `report.html` and `plots/*.png` into a comparison's folder from its plain files.

    Reads result.json, samples.json and config.yaml. The page stands alone: no network, no
    scripts. Returns its path, or None where `lorakit.extras.no_page` says why there is none.

    Raises:
        DataError: the folder holds no finished comparison, or one of its files is broken.
        OutputError: the page or a plot cannot be written.
    """
    if no_page() is not None:
        return None
    place = Path(folder)
    files = read_compare(place)
    result = files.result
    headline, *rest = _verdicts(files)
    return write_page(
        place / "report.html",
        "compare.html.j2",
        name=files.name,
        title=f"{result['model']}: {' · '.join(arm['name'] for arm in files.arms)}",
        headline=headline,
        others=rest,
        notes=[str(note) for note in result.get("notes") or ()],
        data_notes=[str(note) for note in result.get("data_notes") or ()],
        tiles=tables.tiles(files, _shown_first(files)),
        arms=[arm["name"] for arm in files.arms],
        shown=_shown_first(files)["name"],
        reference=result["reference"],
        level=result["protocol"]["level_of_each_arm"],
        least_rows=LEAST_ROWS,
        figures=compare_figures(files, place / "plots"),
        quality=tables.quality(files),
        cost=tables.cost(files),
        forgotten=tables.forgotten(files),
        rates=tables.rates(files),
        probe=tables.probe(files),
        forecast=tables.forecast(files),
        prompts=len(files.samples),
        samples=[sample_of_many(record) for record in files.samples[:_MOST_SAMPLES]],
        facts=tables.facts(files),
        command=str(result.get("command") or ""),
        config=files.config.strip(),
        versions=run_tables.pairs(result.get("versions")),
        machine=run_tables.pairs(result["measured"].get("machine")),
    )


_MOST_SAMPLES = 12


def _shown_first(files: CompareFiles) -> Record:
    """The arm whose figures lead the page: the lowest loss beside the reference."""
    others = files.arms[1:]
    return min(others, key=lambda arm: arm["loss"]["mean"]) if others else files.reference


def _verdicts(files: CompareFiles) -> list[tuple[str, str]]:
    """The leading arm's sentence and judgement first."""
    first = _shown_first(files)["name"]
    ordered = sorted(files.result["differences"], key=lambda d: d["arm"] != first)
    return [(str(d["measured"]["sentence"]), str(d["verdict"]["words"])) for d in ordered]
