"""What a file's name says it holds, and what its first bytes say."""

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

from lorakit.errors import DataError
from lorakit.files.pointers import pointer_in, pointer_problem

Format = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "txt"]

FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "txt",
}
COMPRESSIONS = (".gz", ".zst", ".bz2")

_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh"}
# First bytes -> what such a file is, and what to do with it. {name} is the file's name.
_CONTENTS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"PK\x03\x04",
        "a ZIP archive or an Excel workbook (.xlsx)",
        "unpack it, or save the sheet as CSV (UTF-8)",
    ),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file", "save the sheet as CSV (UTF-8)"),
    (b"PAR1", "Parquet", "rename it to {stem}.parquet"),
    (b"ARROW1", "an Arrow file", "rename it to {stem}.arrow"),
    (b"\xfd7zXZ", "xz data", "unpack it with `xz -d`"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"%PDF", "a PDF", "extract its text first"),
    (b"{\\rtf", "a document in rich text (RTF)", "save it as plain text"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"\x80\x02", "a pickle, which may run code", "write the rows as JSON lines"),
    (b"\x80\x03", "a pickle, which may run code", "write the rows as JSON lines"),
    (b"\x80\x04", "a pickle, which may run code", "write the rows as JSON lines"),
    (b"\x80\x05", "a pickle, which may run code", "write the rows as JSON lines"),
)
_SAVE_SHEET = (
    "save the sheet as CSV (UTF-8), for example soffice --convert-to "
    "'csv:Text - txt - csv (StarCalc):44,34,76' FILE"
)
_SAVE_TEXT = "save its text, for example soffice --convert-to txt:Text FILE"
# Endings that are no format of rows -> what to do.
_OTHER_ENDINGS = {
    ".xlsx": _SAVE_SHEET,
    ".xls": _SAVE_SHEET,
    ".ods": _SAVE_SHEET,
    ".zip": "unpack it and give the file or folder in it",
    ".tar": "unpack it and give the file or folder in it",
    ".tgz": "unpack it and give the file or folder in it",
    ".xz": "unpack it with `xz -d`",
    ".7z": "unpack it and give the file or folder in it",
    ".md": "rename it to .txt to train on its text",
    ".text": "rename it to .txt to train on its text",
    ".docx": _SAVE_TEXT,
    ".doc": _SAVE_TEXT,
    ".odt": _SAVE_TEXT,
    ".rtf": _SAVE_TEXT,
    ".pdf": "write its text into a .txt file, for example with pdftotext",
    ".html": "write its text into a .txt file",
    ".htm": "write its text into a .txt file",
    ".epub": "write its text into a .txt file",
    ".numbers": "export the sheet as CSV (UTF-8)",
    ".gsheet": "download the sheet as CSV",
    ".parq": "rename it to .parquet",
    ".sqlite": "write the rows of a query as CSV or JSON lines",
    ".db": "write the rows of a query as CSV or JSON lines",
    ".xml": "write the rows as JSON lines",
    ".pkl": "write the rows as JSON lines",
    ".pickle": "write the rows as JSON lines",
    ".yaml": "write the rows as JSON lines",
    ".yml": "write the rows as JSON lines",
}


@dataclass(frozen=True)
class DataFile:
    """A file of rows: what its name says about its format and compression."""

    path: Path
    format: Format
    compression: str

    @property
    def name(self) -> str:
        """The path as the user gave it."""
        return str(self.path)


def kind_of(path: Path) -> DataFile | None:
    """What a file's name says it is, or None where it names no known format."""
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""
    inner = Path(path.stem) if compression else path
    format_ = FORMATS.get(inner.suffix.lower())
    return DataFile(path, format_, compression) if format_ else None


def known_formats() -> str:
    """A clause that lists the endings."""
    return f"known: {', '.join(FORMATS)}, each also with {', '.join(COMPRESSIONS)}"


def unknown_format(path: Path) -> str:
    """A clause about a file whose name says nothing of its rows."""
    if problem := pointer_problem(path):
        return problem
    inner = Path(path.stem) if path.suffix.lower() in COMPRESSIONS else path
    advice = _OTHER_ENDINGS.get(inner.suffix.lower()) or _OTHER_ENDINGS.get(path.suffix.lower())
    what = f"{path.suffix!r}" if path.suffix else "of a name without an ending"
    said = f"the format {what} is not known; "
    advice = advice and advice.replace("FILE", quote(str(path)))
    return said + (f"{advice}; " if advice else "") + known_formats()


def check_content(file: DataFile) -> None:
    """Refuse a file whose first bytes are those of something else than its name says.

    Raises:
        DataError: a pointer or a web page in the file's place, another kind of file.
    """
    if problem := pointer_problem(file.path):
        raise DataError(f"{file.name}: {problem}")
    try:
        with file.path.open("rb") as stream:
            head = stream.read(1024)
    except OSError:
        return  # its reader says why
    packed = next((c for c, magic in _MAGIC.items() if head.startswith(magic)), "")
    # A text may begin with the letters BZh.
    if packed and not file.compression and not (packed == ".bz2" and head[4:10] != b"1AY&SY"):
        raise DataError(
            f"{file.name}: holds {packed} data, although its name does not say so: rename it to "
            f"{file.path.name}{packed}"
        )
    if not file.compression and (problem := other_content(file, head)):
        raise DataError(f"{file.name}: {problem}")


def other_content(file: DataFile, head: bytes) -> str | None:
    """A clause, where the (unpacked) content begins as another kind of file does."""
    if problem := pointer_in(head, file.path.name):
        return problem
    own = {"parquet": b"PAR1", "arrow": b"ARROW1"}.get(file.format)
    for magic, what, advice in _CONTENTS:
        if head.startswith(magic) and magic != own:
            stem = file.path.name.split(".")[0]
            return f"is {what}, not {file.format.upper()}: {advice.format(stem=stem)}"
    return None


def not_packed(file: DataFile) -> str:
    """Advice, where a file is not compressed as its name says; empty where it is."""
    with file.path.open("rb") as stream:
        if stream.read(4).startswith(_MAGIC[file.compression]):
            return ""
    return f": the file is not compressed, so rename it to {file.path.stem}"
