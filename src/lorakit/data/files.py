"""A source's name -> files of rows; a file, compressed or not -> lines of text."""

import bz2
import glob
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from lorakit.data.folders import FolderFiles, look_into
from lorakit.data.formats import (
    DataFile,
    check_content,
    kind_of,
    not_packed,
    other_content,
    unknown_format,
)
from lorakit.data.given import GivenRows, Source
from lorakit.errors import DataError, did_you_mean
from lorakit.extras import need
from lorakit.files.pointers import pointer_problem

_GLOB = frozenset("*?[")


def files_of(source: str) -> list[DataFile] | None:
    """The files that a source names: itself, or those of a folder that are trained on, by name.

    None where it is not a path on this machine and may be the id of a dataset on the Hugging Face
    hub.

    Raises:
        DataError: the file is missing, of no known format, another thing than its name says, or the
            folder holds none to train on.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        folder = look_into(path)
        if not folder.train:
            raise DataError(
                f"{source}: this folder holds only rows to measure on "
                f"({', '.join(f.path.name for f in folder.held_out[:8])}), and they are never trained "
                f"on by themselves: to train on them, name the file, for example --data "
                f"{folder.held_out[0].name}"
            )
        return _checked(folder.train)
    if path.exists():
        file = kind_of(path)
        if file is None:
            raise DataError(f"{source}: {unknown_format(path)}")
        return _checked([file])
    if path.is_symlink():
        raise DataError(f"{source}: {pointer_problem(path)}")
    if _GLOB.intersection(source):
        return _checked(_matching(source))
    if (
        kind_of(path)
        or path.is_absolute()
        or source.startswith((".", "~"))
        or source.count("/") > 1
    ):
        raise DataError(f"{source}: no such file; {nearest_file(path)}")
    if "/" in source and path.parent.is_dir():
        raise DataError(f"{source}: no such file or folder; {nearest_file(path)}")
    # An id of the hub may look like a file's name; beside a file of nearly that name it is a slip.
    if path.suffix and "did you mean" in (near := nearest_file(path)):
        raise DataError(f"{source}: no such file; {near}")
    return None


def _matching(pattern: str) -> list[DataFile]:
    """The files that a quoted pattern such as 'data/*.jsonl' names, sorted.

    Raises:
        DataError: there is none, or one is of no known format.
    """
    paths = [Path(p) for p in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]
    files = []
    for path in (path for path in paths if path.is_file()):
        if (file := kind_of(path)) is None:
            raise DataError(f"{pattern}: {path}: {unknown_format(path)}")
        files.append(file)
    if not files:
        raise DataError(f"{pattern}: no file here matches this pattern")
    return files


def _checked(files: Sequence[DataFile]) -> list[DataFile]:
    for file in files:
        check_content(file)
    return list(files)


def folder_of(source: Source) -> FolderFiles | None:
    """The folder that a source names, None where it names none."""
    path = None if isinstance(source, GivenRows) else Path(source).expanduser()
    return look_into(path) if path is not None and path.is_dir() else None


def check_sources(sources: Sequence[Source]) -> None:
    """Refuse sources that are not here, or that need a package which is not installed.

    No row is read, so a run asks this before it does anything else. An id of the hub is only
    known to be one when it is asked for.

    Raises:
        DataError: as `files_of`.
        MissingExtraError: an optional package is missing.
    """
    for source in sources:
        if isinstance(source, GivenRows):
            continue
        folder = folder_of(source)
        files = _checked(folder.train or folder.held_out) if folder else files_of(source)
        if files is None:
            need("data", f"{source}: a dataset of the Hugging Face hub", "datasets")
        for file in files or ():
            need_for(file)


def need_for(file: DataFile) -> None:
    """Refuse a file that takes an optional package to read.

    Raises:
        MissingExtraError: it is not installed.
    """
    if file.format in ("parquet", "arrow"):
        need("data", f"{file.name}: reading {file.format.capitalize()}", "pyarrow")
    if file.compression == ".zst":
        need("data", f"{file.name}: reading .zst", "zstandard")


def nearest_file(path: Path) -> str:
    """A clause with the names in a missing file's folder that are nearest to its own."""
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    if folder != path.parent:
        return f"the folder {path.parent} does not exist either"
    try:
        names = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
    except OSError as error:
        return f"and its folder cannot be read ({error.strerror})"
    return f"in {folder}: {did_you_mean(path.name, names)}"


class _ZstdReader(io.RawIOBase):
    """zstandard's own reader accepts a truncated file without an error; this one raises."""

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        self._raw, self._ready = raw, b""
        self._new = lambda: zstandard.ZstdDecompressor().decompressobj()
        self._broken = zstandard.ZstdError
        self._frame = self._new()
        self._inside = False

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            rest = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = self._new()
                self._inside = False
            rest = rest or self._raw.read(1 << 16)
            if not rest:
                if self._inside:
                    raise EOFError("the last frame is not complete")
                return 0
            self._inside = True
            try:
                self._ready = self._frame.decompress(rest)
            except self._broken as error:
                raise OSError(str(error)) from None
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n


def open_bytes(file: DataFile) -> BinaryIO:
    """The file's decompressed bytes as a stream.

    Raises:
        DataError: the file is empty or cannot be opened.
    """
    need_for(file)
    try:
        if file.path.stat().st_size == 0:
            raise DataError(f"{file.name}: the file is empty")
        # By path: given a file object, gzip and bz2 would leave it open.
        if file.compression == ".gz":
            return cast(BinaryIO, gzip.open(file.path))
        if file.compression == ".bz2":
            return cast(BinaryIO, bz2.open(file.path))
        raw = file.path.open("rb")
    except OSError as error:
        raise DataError(f"{file.name}: cannot be opened ({error.strerror})") from None
    return io.BufferedReader(_ZstdReader(raw), 1 << 16) if file.compression else raw


def decompression_error(file: DataFile, error: Exception, line: int) -> DataError:
    """The error for a compressed stream that ends early or is damaged."""
    after = f"after line {line}" if line else "before the first line"
    if isinstance(error, EOFError):
        return DataError(
            f"{file.name}:{line + 1}: the compressed data ends early, {after}: the file is "
            "truncated; copy or download it again"
        )
    advice = not_packed(file) if file.compression else ""
    return DataError(
        f"{file.name}:{line + 1}: the {file.compression or 'file'} data is damaged {after} "
        f"({error}){advice}"
    )


# What the decompressors raise on damaged input. EOFError: the input is truncated.
DAMAGED = (EOFError, OSError, zlib.error)


def lines(file: DataFile) -> Iterator[str]:
    """The file's lines with their line ends, decoded from UTF-8 one at a time.

    Raises:
        DataError: naming the line, where the bytes are not UTF-8 or the compressed data is broken.
    """
    number = 0
    with open_bytes(file) as stream:
        try:
            head = stream.peek(1024)[:1024] if file.compression else b""  # type: ignore[attr-defined]
            if problem := other_content(file, head):
                raise DataError(f"{file.name}: {problem}")
            # Lines are split on \n alone, as bytes: str.splitlines would also split at U+2028 and
            # its like, which JSON allows inside a string.
            for raw in stream:
                line = raw.removeprefix(b"\xef\xbb\xbf") if number == 0 else raw
                if number == 0 and (guess := _unmarked(line)):
                    raise DataError(
                        f"{file.name}:1: not UTF-8 (every second byte is zero, as in UTF-16). Convert "
                        f"it, for example: iconv -f {guess} -t UTF-8 {file.path.name}"
                    )
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(_wrong_encoding(file, number + 1, line, error)) from None
                yield text
                number += 1
        except DAMAGED as error:
            raise decompression_error(file, error, number) from None


def _unmarked(line: bytes) -> str:
    """The kind of UTF-16 that a first line without a mark is in, '' where it is not."""
    head = line[: min(len(line) // 2 * 2, 64)]
    even, odd = head[::2], head[1::2]
    if len(head) < 8 or bool(any(even)) == bool(any(odd)):
        return ""
    return "UTF-16LE" if any(even) else "UTF-16BE"


def _wrong_encoding(file: DataFile, number: int, line: bytes, error: UnicodeDecodeError) -> str:
    if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
        guess, why = "UTF-16", "the file starts with a UTF-16 mark"
    else:
        guess = "WINDOWS-1252"
        why = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
    return (
        f"{file.name}:{number}: not UTF-8 ({why}). Convert it, for example: "
        f"iconv -f {guess} -t UTF-8 {file.path.name}"
    )
