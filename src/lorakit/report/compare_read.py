"""A comparison's folder, as plain values."""

from dataclasses import dataclass
from pathlib import Path

from lorakit.errors import DataError
from lorakit.report.read import Record, read_json


@dataclass(frozen=True)
class CompareFiles:
    """The files that the page is made of.

    Attributes:
        name: of the folder.
        result: result.json.
        samples: samples.json.
        config: the text of config.yaml, empty where there is none.
    """

    name: str
    result: Record
    samples: tuple[Record, ...]
    config: str

    @property
    def arms(self) -> list[Record]:
        """The arms, the reference first."""
        first = self.result["reference"]
        return sorted(self.result["arms"], key=lambda arm: arm["name"] != first)

    @property
    def reference(self) -> Record:
        """The arm that the others are held against."""
        return self.arms[0]

    def difference(self, arm: str) -> Record | None:
        """What stands between an arm and the reference; None for the reference itself."""
        matches = [d for d in self.result["differences"] if d["arm"] == arm]
        return matches[0] if matches else None


def read_compare(folder: Path) -> CompareFiles:
    """Read a comparison's folder.

    Raises:
        DataError: it holds no finished comparison, or a file of it is not the JSON it should be.
    """
    if not (folder / "result.json").is_file():
        raise DataError(
            f"{folder} holds no finished comparison: there is no result.json in it; give the "
            "folder that `lorakit compare --out` wrote, or finish it with --resume"
        )
    result = read_json(folder / "result.json", dict)
    if "differences" not in result or "arms" not in result:
        raise DataError(f"{folder}/result.json is not that of a comparison")
    if "margins" not in result.get("protocol", {}):
        raise DataError(
            f"{folder}/result.json was written by an earlier version, whose words had other meanings: "
            f"lorakit compare --resume --out {folder} writes it anew from its finished trials"
        )
    config = folder / "config.yaml"
    return CompareFiles(
        name=folder.resolve().name,
        result=result,
        samples=tuple(s for s in read_json(folder / "samples.json", list) if isinstance(s, dict)),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
    )
