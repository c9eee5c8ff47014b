"""A model folder's files, checked before transformers opens them."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.errors import ModelError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# A header is a few hundred bytes a tensor; safetensors itself refuses more than this.
_HEADER_LIMIT = 100_000_000


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in a safetensors file: `start` and `end` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json as a dict.

    Raises:
        ModelError: it is missing or not a JSON object; the message names what is there instead.
    """
    path = folder / "config.json"
    if not path.is_file():
        hint = ""
        if ggufs := sorted(p.name for p in folder.glob("*.gguf")):
            hint = f" It holds {ggufs[0]}: name that file."
        elif (folder / "adapter_config.json").is_file():
            hint = " It is an adapter: name its base model as the model."
        raise ModelError(f"{folder} is not a model folder: it has no config.json.{hint}")
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
    """Check that a safetensors file is as long as its header says, without reading its tensors.

    Raises:
        ModelError: the file is truncated or not a safetensors file.
    """
    read_entries(path)


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file by name.

    The format: 8 bytes of header length (little endian), a JSON header, then the tensors' bytes
    (https://huggingface.co/docs/safetensors).

    Raises:
        ModelError: the file is truncated or not a safetensors file.
    """
    size = path.stat().st_size
    broken = f"{path} is truncated or not a safetensors file ({size} bytes)"
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise ModelError(f"{broken}: fetch or copy it again")
        (length,) = struct.unpack("<Q", head)
        if length > min(_HEADER_LIMIT, size - 8):
            raise ModelError(f"{broken}: fetch or copy it again")
        try:
            header = json.loads(file.read(length))
            entries = {
                name: TensorEntry(
                    entry["dtype"],
                    tuple(entry["shape"]),
                    8 + length + entry["data_offsets"][0],
                    8 + length + entry["data_offsets"][1],
                )
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{broken}: its header cannot be read") from error
    end = max((entry.end for entry in entries.values()), default=8 + length)
    if end != size:
        raise ModelError(f"{broken}: its header declares {end} bytes; fetch or copy it again")
    return entries
