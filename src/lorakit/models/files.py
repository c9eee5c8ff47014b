"""A model folder's files, looked at before anything heavy opens them."""

import json
from pathlib import Path
from typing import Any

from lorakit.errors import ModelError
from lorakit.files.header import DamagedTensorsError, TensorEntry, read_header
from lorakit.models.beside import require_model

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json as a dict.

    Raises:
        ModelError: it is missing or not a JSON object; the message names what is there instead.
    """
    path = folder / "config.json"
    if not path.is_file():
        require_model(folder, ignore_adapter=True)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path} must hold a JSON object; it holds a {type(raw).__name__}")
    return raw


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load from the folder.

    Raises:
        ModelError: none, a shard is missing, or only pickled weights are there.
    """
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{index} cannot be read: {error}") from error
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise ModelError(f"{index} names {name}, which is not in {folder}")
        return [folder / name for name in names]
    if pickles := sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES):
        raise ModelError(
            f"{folder} holds its weights as a pickle ({pickles[0]}), and a pickle can run code "
            "when opened; lorakit reads safetensors only. If you trust the file, convert it once: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)."
        )
    raise ModelError(f"{folder} has no weights: model.safetensors is not there")


def check_whole(path: Path) -> None:
    """See that a safetensors file is as long as its header says, without reading its tensors.

    Raises:
        ModelError: the file is truncated or not a safetensors file.
    """
    read_entries(path)


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a model's safetensors file by name.

    Raises:
        ModelError: the file is truncated or not a safetensors file.
    """
    try:
        return read_header(path)
    except DamagedTensorsError as error:
        raise ModelError(
            f"{path} is truncated or not a safetensors file ({path.stat().st_size} bytes): "
            f"{error}; fetch or copy it again"
        ) from error


def is_sentence_transformers(folder: Path) -> bool:
    """Whether sentence-transformers wrote a model folder: modules.json lists its steps."""
    return (folder / "modules.json").is_file()
