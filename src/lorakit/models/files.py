"""A model folder's files, looked at before anything heavy opens them."""

import json
from pathlib import Path
from typing import Any

from lorakit.errors import ModelError
from lorakit.files.header import DamagedTensorsError, TensorEntry, read_header
from lorakit.files.pointers import pointer_problem
from lorakit.models.beside import require_model

# What a tokenizer of transformers can be read from.
_TOKENIZERS = (
    *("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json"),
    *("merges.txt", "tokenization_*.py"),
)
_BESIDE_TOKENIZERS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json as a dict.

    Raises:
        ModelError: it is missing or not a JSON object; the message names what is there instead.
    """
    path = folder / "config.json"
    if not path.is_file():
        require_model(folder, ignore_adapter=True)
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder.

    Raises:
        ModelError: it cannot be read, is a pointer in the place of the file, no JSON, or no object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if problem := pointer_problem(path):
            raise ModelError(f"{path} {problem}") from error
        raise ModelError(f"{path} is not valid JSON: {error}; fetch or copy it again") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path} must hold a JSON object; it holds a {type(raw).__name__}")
    return raw


def require_tokenizer(folder: Path) -> None:
    """See that there is a tokenizer to open.

    Raises:
        ModelError: there is none, or a pointer in its place.
    """
    for pattern in (*_TOKENIZERS, *_BESIDE_TOKENIZERS):
        for file in sorted(folder.glob(pattern)):
            if problem := pointer_problem(file):
                raise ModelError(f"{file} {problem}")
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        raise ModelError(
            f"{folder} has no tokenizer: tokenizer.json is not there, nor any older file of one. Copy "
            "tokenizer.json and tokenizer_config.json from the model that this one was made from"
        )


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
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
            raise ModelError(f"{index} has no weight_map from tensors to files: fetch it again")
        names = sorted(set(places.values()))
        lost = [n for n in names if Path(n).name != n or not (folder / n).is_file()]
        if lost:
            raise ModelError(_lost_shards(index, lost, len(names)))
        return [folder / name for name in names]
    for file in sorted(folder.glob("*.safetensors")):
        if problem := pointer_problem(file):
            raise ModelError(f"{file} {problem}")
    if shards := sorted(folder.glob("model-*-of-*.safetensors")):
        raise ModelError(
            f"{folder} holds {shards[0].name} and no {index.name}, which says where each tensor is: "
            "fetch it too"
        )
    if pickles := sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES):
        raise ModelError(
            f"{folder} holds its weights as a pickle ({pickles[0]}), and a pickle can run code "
            "when opened; lorakit reads safetensors only. If you trust the file, convert it once: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)."
        )
    raise ModelError(f"{folder} has no weights: model.safetensors is not there")


def _lost_shards(index: Path, lost: list[str], count: int) -> str:
    problem = pointer_problem(index.parent / lost[0])
    if problem:
        return f"{index.parent / lost[0]} {problem}"
    more = f" ({len(lost)} of {count} files are missing)" if count > 1 else ""
    return f"{index} names {lost[0]}, which is not in {index.parent}{more}: fetch or copy it again"


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
        if problem := pointer_problem(path):
            raise ModelError(f"{path} {problem}") from error
        raise ModelError(
            f"{path} is truncated or not a safetensors file ({path.stat().st_size} bytes): "
            f"{error}; fetch or copy it again"
        ) from error


def is_sentence_transformers(folder: Path) -> bool:
    """Whether sentence-transformers wrote a model folder: modules.json lists its steps."""
    return (folder / "modules.json").is_file()
