"""What lies in a folder that was named as a model: a model, an adapter, both, or neither.

transformers looks for adapter_config.json in a model's folder. Where peft is installed it applies that
adapter while it loads the model, and says nothing; where peft is not installed it does not. So a folder
with both is refused until the user says which is meant.
"""

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

from lorakit.errors import ModelError
from lorakit.files.cache import build_folder, cache_dir
from lorakit.files.pointers import pointer_problem

ADAPTER = "adapter_config.json"
CONFIG = "config.json"
# mlx-lm's tensors have the second name; peft's have the first.
_ADAPTER_TENSORS = ("adapter_model.*", "*adapters.safetensors")
# What other programs write in place of config.json, each with what it is and the way on.
_OTHERS = (
    ("model_index.json", "a pipeline of diffusers, not a language model"),
    ("params.json", "in the layout of the model's own authors: convert it with transformers first"),
    ("*.nemo", "a checkpoint of NeMo: export it in the Hugging Face layout first"),
    ("*.onnx", "an ONNX model, which cannot be trained"),
    ("saved_model.pb", "a TensorFlow model: convert it with transformers first"),
)
_DEEPER = ("*", "snapshots/*", "*/snapshots/*")


def require_model(folder: Path, *, ignore_adapter: bool, repository: str | None = None) -> None:
    """See that a folder holds a model, and nothing beside it that changes the model unsaid.

    Args:
        folder: where the files are.
        ignore_adapter: an adapter beside the model is known, and not wanted.
        repository: the hub id that the files came from, for the message.

    Raises:
        ModelError: it holds none, or an adapter beside it.
    """
    named = repository or str(folder)
    if not (folder / CONFIG).is_file():
        if problem := pointer_problem(folder / CONFIG):
            raise ModelError(f"{folder / CONFIG} {problem}")
        raise ModelError(f"{named} is not a model folder: it has no {CONFIG}. {_instead(folder)}")
    if (folder / ADAPTER).is_file() and not ignore_adapter:
        raise ModelError(both(named, folder.resolve().name, repository is not None))


def both(named: str, name: str, on_hub: bool) -> str:
    """The message for a model with an adapter beside it: either meaning, with its commands.

    Args:
        named: as the user named it.
        name: what to call new folders after.
        on_hub: it is a hub id.
    """
    short = named.rpartition("/")[2] if on_hub else name
    model, merged = shlex.quote(named), shlex.quote(f"{short}-merged")
    adapter = shlex.quote(f"{short}-adapter") if on_hub else model
    steps = [f"lorakit pull {model} --out {adapter}"] if on_hub else []
    steps.append(
        f"lorakit merge --model {model} --ignore-adapter --adapter {adapter} --out {merged}"
    )
    return (
        f"{named} holds a model and an adapter beside it ({ADAPTER}), and either can be meant: "
        "transformers would apply the adapter where peft is installed, and not where it is not. The "
        "model alone: add --ignore-adapter (in Python, ignore_adapter=True). The model with its "
        f"adapter: `{'`, then `'.join(steps)}`, and then name {merged} as the model"
    )


def without_adapter(folder: Path) -> Path:
    """A folder in the cache that links to all files of a model folder but those of its adapter.

    transformers has no argument that leaves an adapter in the model's own folder alone. The links are made
    anew when a file is added, removed or changed.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file() and not _of_adapter(file))
    lines = [f"{f.resolve()}\0{f.stat().st_size}\0{f.stat().st_mtime_ns}" for f in files]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    name = folder.resolve().name or "model"
    return build_folder(
        cache_dir() / "models" / f"{name}-without-adapter-{digest}", lambda new: _link(files, new)
    )


def _of_adapter(file: Path) -> bool:
    return file.name == ADAPTER or any(file.match(pattern) for pattern in _ADAPTER_TENSORS)


def _link(files: Iterable[Path], folder: Path) -> None:
    for file in files:
        try:
            os.symlink(file.resolve(), folder / file.name)
        except OSError:  # a system, or a user, without links
            shutil.copyfile(file, folder / file.name)


def _instead(folder: Path) -> str:
    """What lies there in place of a model, and what to do."""
    if (folder / ADAPTER).is_file():
        base = _base_of(folder / ADAPTER)
        return (
            f"It is an adapter{f' of {base}' if base else ''}: name its base as the model and this "
            f"folder as the adapter, {_flags(base, folder)}"
        )
    if ggufs := sorted(p.name for p in folder.glob("*.gguf")):
        return f"It holds {ggufs[0]}: name that file, {folder / ggufs[0]}"
    for pattern, what in _OTHERS:
        if next(folder.glob(pattern), None):
            return f"It is {what}"
    models = _deeper(folder, CONFIG)
    adapters = [place for place in _deeper(folder, ADAPTER) if place not in models]
    if models:
        return f"A model lies inside it: name {models[-1]}{_others(models)}"
    if adapters:
        base = _base_of(adapters[-1] / ADAPTER)
        return (
            f"An adapter lies inside it: name its base as the model and that folder as the "
            f"adapter, {_flags(base, adapters[-1])}{_others(adapters)}"
        )
    held = sorted(file.name for file in folder.iterdir())
    return (
        f"It holds {', '.join(held[:5])}{' …' if len(held) > 5 else ''}" if held else "It is empty"
    )


def _deeper(folder: Path, name: str) -> list[Path]:
    """Folders inside that hold a file of this name; checkpoint-1000 after checkpoint-500."""
    places = {file.parent for pattern in _DEEPER for file in folder.glob(f"{pattern}/{name}")}
    return sorted(places, key=lambda place: (len(place.parts), _number(place.name), place.name))


def _number(name: str) -> int:
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1


def _others(places: list[Path]) -> str:
    """That there are more than the one that is named."""
    return f" (or one of {len(places) - 1} others)" if len(places) > 1 else ""


def _flags(base: str | None, adapter: Path) -> str:
    return f"--model {shlex.quote(base) if base else 'BASE'} --adapter {shlex.quote(str(adapter))}"


def _base_of(config: Path) -> str | None:
    """The base that an adapter names; None where that cannot be read."""
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    base = found.get("base_model_name_or_path") if isinstance(found, dict) else None
    return base if isinstance(base, str) and base else None
