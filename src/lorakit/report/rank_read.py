"""The folder of a search for a rank, as plain values."""

from dataclasses import dataclass
from pathlib import Path

from lorakit.errors import DataError
from lorakit.report.read import Record, read_json


@dataclass(frozen=True)
class RankFiles:
    """The files that the page is made of.

    Attributes:
        name: of the folder.
        result: result.json.
        config: the text of config.yaml, empty where there is none.
    """

    name: str
    result: Record
    config: str


def read_rank(folder: Path) -> RankFiles:
    """Read the folder of a search.

    Raises:
        DataError: it holds no finished search, or a file of it is not the JSON it should be.
    """
    if not (folder / "result.json").is_file():
        raise DataError(
            f"{folder} holds no finished search: there is no result.json in it; give the folder "
            "that `lorakit rank --out` wrote, or finish it with --resume"
        )
    result = read_json(folder / "result.json", dict)
    if "recommended_rank" not in result:
        raise DataError(f"{folder}/result.json is not that of a search for a rank")
    if "margin" not in result:
        raise DataError(
            f"{folder}/result.json was written by an earlier version, whose words had other meanings: "
            f"lorakit rank --resume --out {folder} writes it anew from its finished trials"
        )
    config = folder / "config.yaml"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    return RankFiles(folder.resolve().name, result, text)
