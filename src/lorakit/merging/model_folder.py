"""What a model folder holds beside its weights, taken over into a merged one."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorakit.errors import TargetError
from lorakit.files.whole import write_json
from lorakit.models.files import read_config

# Settings, tokenizer, chat template, licence. A README tells of the base, and code is only taken
# where it was trusted.
_TAKEN = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*")
_LEFT = ("*.index.json", "adapter_config.json", "certificate.json")


def copy_settings(
    base: Path, folder: Path, *, dtype: torch.dtype | None, untie: str | None, code: bool
) -> None:
    """Copy the settings of a model, config.json changed as far as its weights are.

    Args:
        base: the model's folder.
        folder: gets the files.
        dtype: number format of the merged weights; None where it is the base's.
        untie: path of an adapted module whose weight was tied, or None.
        code: take Python files along too.

    Raises:
        TargetError: the tie is not one that config.json speaks of, so that transformers would tie
            the weights again.
    """
    _copy(base, folder, (*_TAKEN, *(("*.py",) if code else ())), _LEFT)
    config = read_config(base)
    for part in _parts(config):
        if dtype is not None:
            part.pop("torch_dtype", None)
            part["dtype"] = str(dtype).removeprefix("torch.")
        if untie is not None:
            part["tie_word_embeddings"] = False
    if dtype is not None or untie is not None:
        write_json(folder / "config.json", config)


def copy_tokenizer(base: Path, folder: Path) -> None:
    """Copy all settings but config.json."""
    _copy(base, folder, _TAKEN, (*_LEFT, "config.json"))


def require_tied_by_config(tied: bool, path: str) -> None:
    """See that a tie is one that the configuration can undo.

    Raises:
        TargetError: it is not.
    """
    if not tied:
        raise TargetError(
            f"{path} shares its weight with another module, but the model's tie_word_embeddings "
            "is off: the merged model would tie them again when it is loaded; keep the adapter, "
            "or train one without these targets"
        )


def _copy(base: Path, folder: Path, taken: Sequence[str], left: Sequence[str]) -> None:
    kept = {f for pattern in taken for f in base.glob(pattern)}
    for file in sorted(kept - {f for pattern in left for f in base.glob(pattern)}):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The configuration, and its text model's where that is a part of it."""
    inner = config.get("text_config")
    return [config, inner] if isinstance(inner, dict) else [config]
