"""What a model folder holds beside its weights, taken over into a merged one."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorakit.files.whole import write_json
from lorakit.merging.older_names import with_older_names
from lorakit.models.files import read_config

# Settings, tokenizer, chat template, licence. A README tells of the base, and code is only taken
# where it was trusted.
_TAKEN = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*")
_LEFT = ("*.index.json", "adapter_config.json", "certificate.json")


def copy_settings(
    base: Path, folder: Path, *, dtype: torch.dtype | None, untie: bool, code: bool
) -> None:
    """Copy the settings of a model, config.json changed as far as its weights are.

    What transformers 5 keeps in `rope_parameters` is written under its older names too; see
    older_names.py.

    Args:
        base: the model's folder.
        folder: gets the files.
        dtype: number format of the merged weights; None where it is the base's.
        untie: whether weights were tied and each module has its own now.
        code: take Python files along too.
    """
    _copy(base, folder, (*_TAKEN, *(("*.py",) if code else ())), _LEFT)
    before = read_config(base)
    config = with_older_names(before)
    for part in _parts(config):
        if dtype is not None:
            _set_dtype(part, dtype)
        if untie:
            part["tie_word_embeddings"] = False
    if config != before:
        write_json(folder / "config.json", config)


def complete_settings(folder: Path, *, dtype: torch.dtype) -> None:
    """Finish the config.json that transformers wrote: its number format, and older names of its keys.

    Args:
        folder: a merged model's.
        dtype: the format that most of its weights are kept in.
    """
    config = with_older_names(read_config(folder))
    for part in _parts(config):
        _set_dtype(part, dtype)
    write_json(folder / "config.json", config)


def _set_dtype(part: dict[str, Any], dtype: torch.dtype) -> None:
    part.pop("torch_dtype", None)
    part["dtype"] = str(dtype).removeprefix("torch.")


def copy_tokenizer(base: Path, folder: Path) -> None:
    """Copy all settings but config.json."""
    _copy(base, folder, _TAKEN, (*_LEFT, "config.json"))


def _copy(base: Path, folder: Path, taken: Sequence[str], left: Sequence[str]) -> None:
    kept = {f for pattern in taken for f in base.glob(pattern)}
    for file in sorted(kept - {f for pattern in left for f in base.glob(pattern)}):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The configuration, and its text model's where that is a part of it."""
    inner = config.get("text_config")
    return [config, inner] if isinstance(inner, dict) else [config]
