"""What every trial of an experiment depends on: options, software, rows and base."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lorakit.config import OutputSpec, RunConfig, TogetherSpec
from lorakit.run.machine import versions

_SOFTWARE = ("lorakit", "torch", "transformers")
# Options of a run that no trial has: the trial decides them, or says itself what it keeps.
_NOT_OF_A_TRIAL = ("from", "keep", "eval_every", "patience", "checkpoint_every")


@dataclass(frozen=True)
class Sources:
    """Where model and rows lie: names of files, folders or hub ids. No figure depends on them.

    Attributes:
        model: the base.
        data: training rows.
        eval_data: held-out rows; empty where a share of the training rows is held out.
        general_data: rows that forgetting is measured on, where the user gave some.
    """

    model: str
    data: tuple[str, ...]
    eval_data: tuple[str, ...]
    general_data: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: RunConfig, general_data: Collection[str] = ()) -> "Sources":
        """Those of a run's options."""
        data = config.data
        rows, held_out = (tuple(map(str, sources)) for sources in (data.data, data.eval_data))
        return cls(config.model.model, rows, held_out, tuple(general_data))

    @property
    def options(self) -> dict[str, Any]:
        """The sources that are options of a run, by name."""
        return {"model": self.model, "data": self.data, "eval_data": self.eval_data}


@dataclass(frozen=True)
class FileStamp:
    """A file by its name, size and time, which say whether it has changed."""

    path: str
    bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Stamp:
    """What a trial depends on besides its own request.

    Attributes:
        config: options of `RunConfig` by name, without sources and output.
        software: versions of lorakit, torch and transformers.
        files: of the sources; only for the profile, which is there to find out what is in them.
        data_sha256, base_sha256: hashes of the rows and of the base, empty for the profile.
    """

    config: Mapping[str, Any]
    software: Mapping[str, str]
    files: tuple[FileStamp, ...] = ()
    data_sha256: str = ""
    base_sha256: str = ""

    def of_contents(self, data_sha256: str, base_sha256: str) -> "Stamp":
        """The stamp of the later trials: files are known by what is in them."""
        return replace(self, files=(), data_sha256=data_sha256, base_sha256=base_sha256)


def stamp_of(config: RunConfig, sources: Sources, *, without: Collection[str] = ()) -> Stamp:
    """The stamp of the profile, the first trial of an experiment.

    Args:
        config: the run's options.
        sources: their files are stamped.
        without: options that belong to a method or that the protocol decides.
    """
    flat = config.to_flat()
    left_out = {*sources.options, *_NOT_OF_A_TRIAL, *without}
    left_out |= {f.name for spec in (OutputSpec, TogetherSpec) for f in fields(spec)}
    options = {name: value for name, value in flat.items() if name not in left_out}
    installed = versions()
    names = (sources.model, *sources.data, *sources.eval_data, *sources.general_data)
    files = tuple(stamp for name in names for stamp in _file_stamps(name))
    return Stamp(options, {name: installed[name] for name in _SOFTWARE}, files)


def _file_stamps(name: str) -> list[FileStamp]:
    """Of the files that a source names; of a hub id its name alone."""
    path = Path(name)
    if not path.exists():
        return [FileStamp(name, 0, 0)]
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return [FileStamp(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats]
