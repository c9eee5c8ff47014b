"""A folder of rows -> which of its files are trained on, which are held out, and which are neither.

The rules are those of Hugging Face `datasets` (datasets/data_files.py, 5.2), so that a clone of a hub
dataset means here what its id means there: the `configs` of README.md come first, then the words
train, validation, test and their like in the names of folders and files. Two things differ, because a
mistake would be silent: test rows are never trained on, and two training splits (train_sft and
train_gen) are not taken together.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lorakit.data.formats import DataFile, kind_of, known_formats
from lorakit.errors import DataError

Part = Literal["train", "validation", "test"]

WORDS: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "heldout", "holdout"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# Between such words: what datasets calls "non words".
_BETWEEN = re.compile(r"[-._ 0-9]+")
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}")
# Files that describe rows and hold none.
_DESCRIPTIONS = {
    *("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "package.json"),
}
_TEXTS = re.compile(r"(readme|license|licence|notice|requirements|citation|changelog)", re.I)


@dataclass(frozen=True)
class FolderFiles:
    """The files of a folder by what they are for. unused: files of rows that are for none of it."""

    path: Path
    train: tuple[DataFile, ...] = ()
    validation: tuple[DataFile, ...] = ()
    test: tuple[DataFile, ...] = ()
    unused: tuple[DataFile, ...] = ()
    by: str = ""

    @property
    def held_out(self) -> tuple[DataFile, ...]:
        """What training is measured on: the validation rows, or the test rows where there are none."""
        return self.validation or self.test

    @property
    def split(self) -> bool:
        """Whether some file is held out by its name, so that not all files are one kind of rows."""
        return bool(self.validation or self.test)


def part_of(name: str) -> Part | None:
    """What a name says its rows are for. Also read, beyond datasets' words: TestData, trainset.

    >>> part_of("my_train-00000-of-00002.parquet"), part_of("TestSet.csv"), part_of("contest.csv")
    ('train', 'test', None)
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    words = _BETWEEN.split(re.sub(r"(held|hold)[-_ ]?out", "heldout", apart))
    bare = (re.sub(r"(?<=.)(set|data|split)$", "", word) for word in words)
    return next((WORDS[word] for word in bare if word in WORDS), None)


def look_into(folder: Path) -> FolderFiles:
    """The files of a folder, and what each is for.

    Raises:
        DataError: there are none, or it is not clear which to train on.
    """
    inside = sorted(_files(folder))
    files = _rows_only([f for f in map(kind_of, inside) if f], folder)
    if configured := _configured(folder, inside):
        return configured
    if not files:
        shown = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        names = ", ".join(map(repr, shown[:8])) or "no files"
        raise DataError(f"{folder}: no file of rows in this folder ({names}); {known_formats()}")
    parts = {f: _part(f.path.relative_to(folder)) for f in files}
    if any(parts.values()):
        _one_training_split(folder, [f for f in files if parts[f] == "train"])
        labelled = any(part == "train" for part in parts.values())
        train = [f for f in files if parts[f] == ("train" if labelled else None)]
        by = {part: tuple(f for f in files if parts[f] == part) for part in ("validation", "test")}
        return FolderFiles(
            folder,
            tuple(train),
            by["validation"],
            by["test"],
            tuple(f for f in files if parts[f] is None) if labelled else (),
            "the names of the files",
        )
    top = [f for f in files if f.path.parent == folder]
    chosen = top or files
    return FolderFiles(folder, tuple(chosen), unused=tuple(f for f in files if f not in chosen))


def _files(folder: Path, above: frozenset[Path] = frozenset()) -> Iterable[Path]:
    above |= {folder.resolve()}
    for path in folder.iterdir():
        if path.name.startswith((".", "__MACOSX")):
            continue
        if path.is_dir():
            if path.resolve() not in above:  # a link may lead back up
                yield from _files(path, above)
        elif path.is_file() or path.is_symlink():
            yield path


def _rows_only(files: Sequence[DataFile], folder: Path) -> list[DataFile]:
    """Without descriptions; and plain text only where nothing else is there."""
    files = [f for f in files if f.path.name not in _DESCRIPTIONS]
    texts = [f for f in files if f.format == "txt"]
    if len(texts) < len(files):
        return [f for f in files if f.format != "txt"]
    return [f for f in texts if not _TEXTS.match(f.path.name)]


def _part(path: Path) -> Part | None:
    """Folders' names come before the file's own."""
    return next((part for name in path.parts if (part := part_of(name))), None)


def _one_training_split(folder: Path, files: Sequence[DataFile]) -> None:
    splits = sorted({s["split"] for f in files if (s := _SHARD.match(f.path.name))})
    if len(splits) > 1:
        raise _several(folder, splits, files)


def _several(folder: Path, splits: Sequence[str], files: Sequence[DataFile]) -> DataError:
    example = next((f.name for f in files if splits[0] in f.name), files[0].name)
    return DataError(
        f"{folder}: holds several training splits ({', '.join(splits)}), and one is trained on: name "
        f"its files, for example --data {example}"
    )


def _configured(folder: Path, inside: Sequence[Path]) -> FolderFiles | None:
    """What the `configs` of README.md say, None where there are none."""
    configs = [c for c in _front_matter(folder / "README.md").get("configs") or () if _named(c)]
    if not configs:
        return None
    names = [str(c.get("config_name", "default")) for c in configs]
    chosen = [c for c, n in zip(configs, names, strict=True) if n == "default"]
    chosen = [c for c in configs if c.get("default") is True] or chosen
    if len(configs) > 1 and not chosen:
        files = _of_patterns(folder, inside, [p for _, ps in _splits(configs[0]) for p in ps])
        example = files[0].name if files else f"{folder}/FILE"
        raise DataError(
            f"{folder}: README.md describes several sets of rows ({', '.join(names[:12])}), and none "
            f"of them is the default: name the files of one, for example --data {example}"
        )
    by: dict[Part, list[DataFile]] = {"train": [], "validation": [], "test": []}
    splits = _splits((chosen or configs)[0])
    for split, patterns in splits:
        files = _of_patterns(folder, inside, patterns)
        if not files:
            raise DataError(
                f"{folder}: README.md names {', '.join(patterns)} for the split {split!r}, and no "
                "such file of rows is here: download the folder again, with its large files (Git "
                "LFS), or name files with --data"
            )
        part = part_of(split) or ("train" if len(splits) == 1 else None)
        if part is not None:
            by[part] += files
    training = [split for split, _ in splits if part_of(split) == "train"]
    if len(training) > 1:
        raise _several(folder, training, by["train"])
    if not by["train"] and not by["validation"] and not by["test"]:
        raise _several(folder, [s for s, _ in splits], _of_patterns(folder, inside, ["**"]))
    used = {f for files in by.values() for f in files}
    rest = _rows_only([f for f in map(kind_of, inside) if f and f not in used], folder)
    return FolderFiles(
        folder,
        tuple(by["train"]),
        tuple(by["validation"]),
        tuple(by["test"]),
        tuple(rest),
        "README.md",
    )


def _named(config: Any) -> bool:
    return isinstance(config, dict) and bool(config.get("data_files") or config.get("data_dir"))


def _splits(config: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(split, patterns) of a config: `data_files` may be a text, a list, or a list of mappings."""
    given = config.get("data_files")
    if given is None:
        return [("train", [f"{config['data_dir']}/**"])]
    entries = given if isinstance(given, list) else [given]
    if isinstance(given, dict):
        entries = [{"split": split, "path": path} for split, path in given.items()]
    if all(isinstance(e, str) for e in entries):
        return [("train", [str(e) for e in entries])]
    found = []
    for entry in entries:
        if isinstance(entry, dict):
            path = entry.get("path") or []
            patterns = [str(p) for p in (path if isinstance(path, list) else [path])]
            found.append((str(entry.get("split", "train")), patterns))
    return found


def _of_patterns(folder: Path, inside: Sequence[Path], patterns: Sequence[str]) -> list[DataFile]:
    matches = [_glob(pattern) for pattern in patterns]
    chosen = [
        p for p in inside if any(m.fullmatch(p.relative_to(folder).as_posix()) for m in matches)
    ]
    return [f for f in map(kind_of, chosen) if f and f.path.name not in _DESCRIPTIONS]


def _glob(pattern: str) -> re.Pattern[str]:
    """A pattern of paths, `**` over folders, as one regular expression."""
    pattern = pattern.removeprefix("./")
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(known.get(p) or (p if p.startswith("[") else re.escape(p)) for p in pieces)
    )


def _front_matter(readme: Path) -> dict[str, Any]:
    """The YAML between the two first lines of ---, empty where there is none."""
    try:
        text = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    block = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if not block:
        return {}
    try:
        found = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        raise DataError(
            f"{readme}: the YAML between the lines of --- is broken ({str(error).splitlines()[0]}); "
            "mend it, or name the files of rows with --data"
        ) from None
    return found if isinstance(found, dict) else {}
