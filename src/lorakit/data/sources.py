"""Which files are trained on and which are measured on, and what is said of them.

A folder that holds train, validation and test by name is both: its training files are the training
rows, its validation files (test files, where there are none) the held-out rows, unless others are
given. Test rows are never trained on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lorakit.data.files import files_of, folder_of
from lorakit.data.folders import FolderFiles
from lorakit.data.formats import DataFile
from lorakit.data.given import GivenRows, Source
from lorakit.data.records import rows_of_file
from lorakit.data.spec import DataSpec


def by_split(spec: DataSpec) -> DataSpec:
    """The same rows with the files of folders by name: training rows, and held-out rows.

    Raises:
        DataError: a folder cannot be read, or holds nothing to train on.
    """
    folders = [f for f in map(folder_of, spec.data) if f]
    held_out = tuple(file.name for folder in folders for file in folder.held_out)
    data = tuple(
        name
        for source in spec.data
        for name in (_names(files_of(str(source))) if folder_of(source) else [source])
    )
    return replace(spec, data=data, eval_data=measured(spec.eval_data) or held_out)


def measured(sources: Sequence[Source]) -> tuple[Source, ...]:
    """Rows to measure on: of a folder with splits its test files (its validation files, where it has
    none), of another all its files."""
    result: list[Source] = []
    for source in sources:
        folder = folder_of(source)
        result += [source] if folder is None else _names(_to_measure(folder))
    return tuple(result)


def all_files(sources: Sequence[Source]) -> tuple[Source, ...]:
    """The same rows with the files of folders by name: every file of rows, whatever it is for."""
    result: list[Source] = []
    for source in sources:
        folder = folder_of(source)
        result += [source] if folder is None else _names(_every(folder))
    return tuple(result)


def answering_notes(sources: Sequence[Source]) -> list[str]:
    """What folders stand for whose rows are answered, and how files are read."""
    folders = [folder for folder in map(folder_of, sources) if folder]
    said = [f"The folder {f.path} stands for {_listed(_every(f))}." for f in folders]
    return [*said, *_reading_notes(all_files(sources))]


def _every(folder: FolderFiles) -> list[DataFile]:
    files = {*folder.train, *folder.validation, *folder.test}
    return sorted(files, key=lambda file: file.name)


def _to_measure(folder: FolderFiles) -> Sequence[DataFile]:
    return folder.test or folder.validation or folder.train


def _names(files: Iterable[DataFile] | None) -> list[Source]:
    return [file.name for file in files or ()]


def training_notes(spec: DataSpec) -> list[str]:
    """What folders stand for, and what had to be decided to read files: one sentence each."""
    notes = []
    for source in spec.data:
        if folder := folder_of(source):
            parts = [f"is trained on {_listed(folder.train)}"]
            if folder.held_out and not spec.eval_data:
                parts.append(f"measured on {_listed(folder.held_out)}")
            taken = set(folder.train) | (set() if spec.eval_data else set(folder.held_out))
            notes.append(_sentence(folder, parts, taken))
    notes += [_measuring(f) for f in map(folder_of, spec.eval_data) if f]
    resolved = by_split(spec)
    return [*notes, *_reading_notes((*resolved.data, *resolved.eval_data))]


def measuring_notes(sources: Sequence[Source]) -> list[str]:
    """The same for rows that are only measured on."""
    notes = [_measuring(folder) for folder in map(folder_of, sources) if folder]
    return [*notes, *_reading_notes(measured(sources))]


def _measuring(folder: FolderFiles) -> str:
    files = _to_measure(folder)
    return _sentence(folder, [f"is measured on {_listed(files)}"], set(files))


def _sentence(folder: FolderFiles, parts: list[str], taken: set[DataFile]) -> str:
    if not folder.split and not folder.by:
        parts = [f"stands for {_listed(folder.train)}"]
    everything = (*folder.train, *folder.validation, *folder.test, *folder.unused)
    if left := [f for f in everything if f not in taken]:
        parts.append(f"not used: {_listed(left)}")
    by = f" (by {folder.by})" if folder.by else ""
    return f"The folder {folder.path} {'; '.join(parts)}{by}."


def _listed(files: Sequence[DataFile]) -> str:
    shown = ", ".join(f.path.name for f in files[:8])
    return shown + (f" and {len(files) - 8} more" if len(files) > 8 else "")


def _reading_notes(sources: Sequence[Source]) -> list[str]:
    """How files are read whose form is not the usual one."""
    files = [
        file
        for source in sources
        if not isinstance(source, GivenRows)
        for file in files_of(source) or ()
        if file.format not in ("parquet", "arrow")
    ]
    by_reading: dict[str, list[DataFile]] = {}
    for file in files:
        first = next(rows_of_file(file), None)
        if first is not None and first.reading:
            by_reading.setdefault(first.reading, []).append(file)
    return [
        f"{_listed(files)} {reading}." if len(files) == 1 else f"{_listed(files)}: each {reading}."
        for reading, files in by_reading.items()
    ]
