"""What trials found, kept in the user's cache: a model of the same files is not asked again.

    <cache>/trials/<key>.json     {"of": key, "answers": {question: answer}}

The key is over all that an answer depends on: the files of the base, as its fingerprint is remembered by
them; lorakit's own code, torch and transformers; the configuration, device and number formats; every
module with its class and settings, and every parameter with its shape, pairs included. A file that is
damaged, or says that it is of something else, is left aside and written anew. The variable
LORAKIT_TRIALS=again reads and writes nothing. So does a model that was not loaded by lorakit, or whose
modules somebody else has hooked or given another forward: then the files do not say what it computes.
"""

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.errors import ConfigError, OutputError
from lorakit.files.cache import cache_dir
from lorakit.files.whole import write_text
from lorakit.kernels.chosen import kernels_of
from lorakit.kernels.native import library
from lorakit.kernels.packed.counting import packing_of
from lorakit.lora.acting import everywhere
from lorakit.models.fingerprint import files_of

_log = logging.getLogger("lorakit.execution")

VARIABLE = "LORAKIT_TRIALS"
_VERSION = 1
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def asked_once(model: Any, question: str, ask: Callable[[], bool]) -> bool:
    """The answer of a trial of a model: the one that is kept, or else what `ask` finds, which is kept.

    Args:
        model: what is tried.
        question: what is asked, with the lengths that it is asked of; unlike all others.
        ask: tries.

    Raises:
        ConfigError: LORAKIT_TRIALS is neither empty nor "again".
    """
    known = recall(model, question)
    if isinstance(known, bool):
        return known
    with everywhere(model):
        answer = ask()
    keep(model, question, answer)
    return answer


def recall(model: Any, question: str) -> Any:
    """The answer that is kept, as JSON gives it; None where there is none.

    Raises:
        ConfigError: as `asked_once`.
    """
    key = key_of(model)
    answer = None if key is None else _answers(key).get(question)
    if answer is not None:
        _log.info("%s, %s: known (%s)", type(model).__name__, question, answer)
    return answer


def keep(model: Any, question: str, answer: Any) -> None:
    """Keep an answer that JSON can hold. A cache that cannot be written keeps nothing."""
    key = key_of(model)
    if key is None:
        return
    text = json.dumps({"of": key, "answers": {**_answers(key), question: answer}}, indent=1)
    try:
        write_text(_file(key), text, what="cache file")
    except OutputError as error:
        _log.info("what was tried is not kept: %s", error)


def _file(key: str) -> Path:
    return cache_dir() / "trials" / f"{key[:32]}.json"


def _answers(key: str) -> dict[str, Any]:
    try:
        held = json.loads(_file(key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(held, dict) or held.get("of") != key:
        return {}
    answers = held.get("answers")
    return answers if isinstance(answers, dict) else {}


def key_of(model: Any) -> str | None:
    """What a model's answers are kept under, as it is now; None where they are not kept.

    Raises:
        ConfigError: as `asked_once`.
    """
    wish = os.environ.get(VARIABLE, "")
    if wish not in ("", "again"):
        raise ConfigError(
            f"{VARIABLE} is {wish!r}: set it to 'again' (models are tried each time) or unset it"
        )
    if wish:
        return None
    files = files_of(model)
    if files is None:
        return None
    digest = hashlib.sha256()
    for line in (f"version {_VERSION}", files, _code(), *_surroundings(model)):
        digest.update(line.encode() + b"\n")
    for path, module in model.named_modules():
        if _is_strange(module):
            return None
        digest.update(f"{path}\0{_described(module)}\n".encode())
    for name, parameter in model.named_parameters():
        shape = (tuple(parameter.shape), parameter.dtype, parameter.device.type)
        digest.update(f"{name}\0{shape}\0{parameter.requires_grad}\n".encode())
    return digest.hexdigest()


def _surroundings(model: Any) -> Iterator[str]:
    """Everything but the model's modules that may change how it computes."""
    device = model.device
    yield f"{device.type} {torch.cuda.get_device_name(device) if device.type == 'cuda' else ''}"
    yield f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    yield f"{torch.get_float32_matmul_precision()} {torch.are_deterministic_algorithms_enabled()}"
    yield packing_of(model) or ""
    yield kernels_of(model).line
    compiled = library()
    yield "" if isinstance(compiled, str) else _state(compiled.path)
    config = model.config.to_dict()
    yield json.dumps(config, sort_keys=True, default=str)
    yield str(model.config._attn_implementation).removeprefix("lorakit_")
    for name, value in sorted(os.environ.items()):
        if name.startswith("LORAKIT_") and name not in ("LORAKIT_CACHE", "LORAKIT_STORE"):
            yield f"{name}={value}"


def _is_strange(module: nn.Module) -> bool:
    """Whether somebody else decides what a module computes."""
    if "forward" in vars(module):
        return True
    hooks = (hook for name in _HOOKS for hook in getattr(module, name).values())
    return any(not str(_module_of(hook)).startswith("lorakit.") for hook in hooks)


def _module_of(hook: Any) -> Any:
    """Where a hook was written; of a partial function or a method that of what it calls."""
    while hasattr(hook, "func"):
        hook = hook.func
    return getattr(hook, "__module__", None)


def _described(module: nn.Module) -> str:
    """A module's class and the plain values that it holds."""
    kind = type(module)
    plain = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and name != "training"
    }
    return f"{kind.__module__}.{kind.__qualname__} {sorted(plain.items())}"


@cache
def _code() -> str:
    """Versions, and lorakit's own code by size and time of change: an editable install has one version."""
    names = ("lorakit", "lorakit-kernels", "torch", "transformers")
    lines = [f"{name} {_version(name)}" for name in names]
    root = Path(__file__).parents[1]
    for room in ("execution", "kernels", "lora", "models"):
        for path in sorted((root / room).rglob("*")):
            if path.suffix == ".py":
                lines.append(_state(path))
    return "\n".join(lines)


def _state(path: Path) -> str:
    stat = path.stat()
    return f"{path.name} {stat.st_size} {stat.st_mtime_ns}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
