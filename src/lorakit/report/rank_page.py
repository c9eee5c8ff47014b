"""The page of a search for a rank: the answer, and why."""

from pathlib import Path

from lorakit.extras import no_page
from lorakit.report import rank_tables as tables
from lorakit.report import run_tables
from lorakit.report.html import write_page
from lorakit.report.rank_figures import rank_figures
from lorakit.report.rank_read import read_rank


def write_rank_report(folder: str | Path) -> Path | None:
    """Write `report.html` and `plots/*.png` into a search's folder from its plain files.

    Reads result.json and config.yaml. The page stands alone: no network, no scripts. Returns its
    path, or None where `lorakit.extras.no_page` says why there is none.

    Raises:
        DataError: the folder holds no finished search, or one of its files is broken.
        OutputError: the page or a plot cannot be written.
    """
    if no_page() is not None:
        return None
    place = Path(folder)
    files = read_rank(place)
    result = files.result
    return write_page(
        place / "report.html",
        "rank.html.j2",
        name=files.name,
        title=f"{result['model']}: rank {result['recommended_rank']}",
        words=str(result["words"]),
        notes=[str(note) for note in result["notes"]],
        data_notes=[str(note) for note in result["data_notes"]],
        tiles=tables.tiles(files),
        figures=rank_figures(files, place / "plots"),
        reference=result["reference"],
        gaps=tables.gaps(files),
        evidence=tables.evidence(files),
        decisions=[str(text) for text in result["decisions"]],
        grid=tables.grid(files),
        layers=tables.layers(files),
        facts=tables.facts(files),
        command=str(result.get("command") or ""),
        config=files.config.strip(),
        versions=run_tables.pairs(result.get("versions")),
        machine=run_tables.pairs(result["measured"].get("machine")),
    )
