"""lorakit.json: which base, which data, which numbers an adapter came from.

peft and other readers ignore the file; lorakit refuses another base by it.
"""

import importlib.metadata
import math
import platform
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from lorakit.adapters.asking import asking_in
from lorakit.adapters.peft_config import read_json
from lorakit.errors import AdapterError, BaseMismatchError, ConfigError
from lorakit.files.whole import write_json
from lorakit.lora.spec import LoraSpec
from lorakit.models import default
from lorakit.models.fingerprint import identify
from lorakit.models.load import source_of

RECORD = "lorakit.json"
FORMAT = 1
_HASHES = {
    "weights_sha256": "weights",
    "tokenizer_sha256": "tokenizer",
    "template_sha256": "chat template",
}


class Identity(Protocol):
    """A base model's fingerprint, `lorakit.models.BaseIdentity`."""

    @property
    def name(self) -> str:
        """What the user calls the base."""

    @property
    def revision(self) -> str | None:
        """Commit of the base on the hub."""

    def to_dict(self) -> dict[str, Any]:
        """name, revision, weights_sha256, tokenizer_sha256, template_sha256."""


@dataclass(frozen=True)
class Record:
    """The content of lorakit.json.

    Attributes:
        base: fingerprint of the base model, None where it was not known.
        tensors_sha256: hash of adapter_model.safetensors.
        spec: the LoraSpec as the user gave it.
        provenance: what the caller said: template, data hash, configuration, metrics.
        versions: of lorakit, torch, safetensors and Python when it was written.
        moved: paths that pairs have in the file by those of their layers, where the two differ.
    """

    base: dict[str, Any] | None
    tensors_sha256: str
    spec: dict[str, Any]
    provenance: dict[str, Any] | None
    versions: dict[str, str] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)


def known_identity(model: nn.Module, given: Identity | None) -> Identity | None:
    """The fingerprint given, or that of a base which `load_model` made; None for any other."""
    if given is not None:
        return given
    source = source_of(model)
    return None if source is None else identify(source)


def make_record(
    spec: LoraSpec,
    tensors_sha256: str,
    base: Mapping[str, Any] | None,
    provenance: Mapping[str, Any] | None,
    moved: Mapping[str, str] | None = None,
) -> Record:
    """Gather a record.

    Args:
        spec: as the user gave it.
        tensors_sha256: of the tensors' file, "" before it is written.
        base: the base's fingerprint, where it is known.
        provenance: what else is known.
        moved: see `Record`.

    Raises:
        ConfigError: `provenance` holds something that JSON cannot.
    """
    given = _json_ready(provenance, "provenance") if provenance is not None else None
    known = dict(base) if base is not None else None
    recorded = _json_ready(asdict(spec), "spec")
    return Record(known, tensors_sha256, recorded, given, _versions(), dict(moved or {}))


def write_record(folder: Path, record: Record) -> None:
    """Write lorakit.json into a folder."""
    content = {"format": FORMAT, **asdict(record)}
    write_json(folder / RECORD, content, sort_keys=True, allow_nan=False)


def read_record(folder: Path) -> Record | None:
    """The record in an adapter folder; None where there is none, as in peft's own folders.

    Raises:
        AdapterError: it is broken or of another format.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    content = read_json(path)
    if content.pop("format", None) != FORMAT:
        raise AdapterError(f"{path} is of another format than {FORMAT}; use a newer lorakit")
    try:
        record = Record(**content)
    except TypeError as error:
        raise AdapterError(f"{path} has other keys than lorakit writes: {error}") from error
    for name in ("base", "provenance"):
        if not isinstance(content[name], dict | None):
            raise AdapterError(f"{path}: {name} must be an object; it is {content[name]!r}")
    if not isinstance(record.moved, dict) or not all(
        isinstance(v, str) for v in record.moved.values()
    ):
        raise AdapterError(f"{path}: moved must map paths to paths; it is {record.moved!r}")
    return record


def check_base(
    folder: Path, record: Record | None, identity: Identity | None, *, name: str | None = None
) -> None:
    """Compare the base that an adapter was trained on with the one at hand.

    Where either is not known, there is nothing to compare.

    Args:
        folder: of the adapter.
        record: its lorakit.json.
        identity: of the base at hand.
        name: what the user calls the adapter; default: its folder.

    Raises:
        BaseMismatchError: weights, tokenizer or chat template differ; the text has both names.
    """
    if record is None or record.base is None or identity is None:
        return
    theirs, ours = record.base, identity.to_dict()
    if difference := _difference(theirs, ours, "here"):
        parts = [word for key, word in _HASHES.items() if theirs.get(key) != ours.get(key)]
        differs = " and ".join(parts) if len(parts) > 1 else f"{parts[0]} alone"
        asked = asking_in(record.provenance).get("model") or theirs.get("name")
        changed = "" if identity.name != theirs.get("name") else ", as it was then"
        raise BaseMismatchError(
            f"{name or folder} was trained on {theirs.get('name')!r}, and this base is "
            f"{identity.name!r}, which differs ({differs}): give the base it was trained on"
            f"{changed} (--model {shlex.quote(str(asked))}), or --force if you know that the "
            f"difference does not matter ({difference})"
        )


def base_note(
    base_name: str | None, record: Record | None, identity: Identity | None
) -> str | None:
    """A sentence where an adapter names another base than the one at hand, and no hash can tell.

    Args:
        base_name: `base_model_name_or_path` of its adapter_config.json.
        record: its lorakit.json; with a fingerprint in it, `check_base` tells.
        identity: of the base at hand.
    """
    if not base_name or identity is None or (record is not None and record.base is not None):
        return None
    if _model_name(base_name) == _model_name(identity.name):
        return None
    return (
        f"adapter_config.json names {base_name!r} as its base, and this base is {identity.name!r}: it "
        "holds no hash that could tell whether they are the same"
    )


def _model_name(name: str) -> str:
    """What stays of a name without its folder or owner, and of a folder of the hub's cache."""
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    if len(parts) > 2 and parts[-2] == "snapshots":
        parts = parts[-3].split("--")
    last = parts[-1].lower() if parts else ""
    return default.NAME if last == default.HUB_ID.rpartition("/")[2].lower() else last


def check_alike(one: Path, first: Record | None, other: Path, second: Record | None) -> None:
    """Compare the bases of two adapters; where either is not known, there is nothing to compare.

    Raises:
        BaseMismatchError: weights, tokenizer or chat template differ; the text has all names.
    """
    if first is None or second is None or first.base is None or second.base is None:
        return
    if difference := _difference(second.base, first.base, f"in {one}"):
        raise BaseMismatchError(
            f"{other} was trained on {second.base.get('name')!r} and {one} on "
            f"{first.base.get('name')!r}, which differs ({difference}): only adapters of one base "
            "can be put together; --force if you know that the difference does not matter"
        )


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any], where: str) -> str:
    """Which hashes differ, in words; empty where none does."""
    return "; ".join(
        f"{word} {_short(theirs.get(key))} there, {_short(ours.get(key))} {where}"
        for key, word in _HASHES.items()
        if theirs.get(key) != ours.get(key)
    )


def _short(digest: str | None) -> str:
    return f"{digest[:12]}…" if digest else "none"


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("lorakit", "safetensors")}
    return {**packages, "torch": str(torch.__version__), "python": platform.python_version()}


def _json_ready(value: Any, where: str) -> Any:
    """The value with JSON's own types; NaN and infinities, which JSON lacks, become words."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {str(key): _json_ready(item, f"{where}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [_json_ready(item, f"{where}[{n}]") for n, item in enumerate(value)]
        case Path():
            return str(value)
    raise ConfigError(f"{where} is a {type(value).__name__}, which lorakit.json cannot hold")
