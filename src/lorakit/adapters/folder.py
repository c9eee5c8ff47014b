"""Is a path an adapter folder of peft's layout? And what is it where it is not?"""

import re
import shlex
from pathlib import Path

from lorakit.adapters.peft_config import CONFIG
from lorakit.errors import AdapterError
from lorakit.files.pointers import pointer_problem

TENSORS = "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin", "adapter_0.pt")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_MLX = "adapters.safetensors"
# What other programs call their files, each with what to do.
_OTHERS = (
    ("pytorch_lora_weights.safetensors", "diffusers' layout, for a model that makes images"),
    ("*.nemo", "a checkpoint of NeMo: convert it to the Hugging Face layout with NeMo first"),
    ("*.distcp", "a distributed checkpoint in parts: let the trainer save the adapter whole first"),
    ("*.gguf", "a GGUF adapter, which llama.cpp loads and which cannot be trained on"),
)


def adapter_folder(folder: str | Path) -> Path:
    """Check that a path is an adapter folder, as far as its file names tell.

    Raises:
        AdapterError: it is missing, is a file, holds pickled weights, or lacks a file; the message says
            what is there instead, and the way on.
    """
    folder = Path(folder)
    if folder.is_file():
        if folder.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"):
            raise AdapterError(_pickled(folder))
        inside = f", {folder.parent}" if (folder.parent / CONFIG).is_file() else ""
        raise AdapterError(f"{folder} is a file; give the folder that holds {CONFIG}{inside}")
    if not folder.is_dir():
        raise AdapterError(f"there is no adapter folder {folder}{_on_the_hub(folder)}")
    for name in (CONFIG, TENSORS):
        if (folder / name).is_symlink() and (problem := pointer_problem(folder / name)):
            raise AdapterError(f"{folder / name} {problem}")
    if not (folder / CONFIG).is_file():
        raise AdapterError(f"{folder} is no adapter: it has no {CONFIG}{_instead(folder)}")
    if not (folder / TENSORS).is_file():
        for name in _PICKLES:
            if (folder / name).is_file():
                raise AdapterError(_pickled(folder / name))
        raise AdapterError(f"{folder} lacks {TENSORS}{_instead(folder, deeper=False)}")
    return folder


def _on_the_hub(folder: Path) -> str:
    name = str(folder)
    if not _HUB_ID.fullmatch(name) or folder.parent.exists():
        return ""
    return (
        f"; if it is on the Hugging Face hub, `lorakit pull {name} --out {folder.name}` brings it"
    )


def _instead(folder: Path, *, deeper: bool = True) -> str:
    """What else lies there, and what to do."""
    inner = sorted((f.parent for f in folder.glob(f"*/{CONFIG}")), key=_step) if deeper else []
    if inner:
        more = f" (or one of {len(inner) - 1} others)" if len(inner) > 1 else ""
        return f"; an adapter lies inside it: name {inner[-1]}{more}"
    if (folder / _MLX).is_file():
        named = shlex.quote(str(folder))
        return f"; it is mlx-lm's: `lorakit import {named} --base BASE --out NEW` converts it"
    if (folder / "config.json").is_file():
        return (
            "; it is a model (config.json): name it with --model, and the adapter's own folder here"
        )
    if parts := sorted(folder.glob("adapter_model-*-of-*.safetensors")):
        return (
            f"; its tensors are in {len(parts)} files: put them into one, with safetensors' load_file "
            "of each and one save_file"
        )
    for pattern, what in _OTHERS:
        if found := next(iter(sorted(folder.glob(pattern))), None):
            return f"; it holds {found.name}: {what}"
    return ""


def _step(place: Path) -> tuple[int, str]:
    """checkpoint-1000 after checkpoint-500, and any other name before both."""
    digits = place.name.rpartition("-")[2]
    return (int(digits) if digits.isdecimal() else -1), place.name


def _pickled(path: Path) -> str:
    python = (
        "import torch; from safetensors.torch import save_file; "
        f"save_file(torch.load({str(path)!r}, map_location='cpu', weights_only=True), "
        f"{str(path.with_name(TENSORS))!r}, metadata={{'format': 'pt'}})"
    )
    return (
        f"{path} is a pickle, and reading one can run code; convert it once, with a reader that runs "
        f"none: python -c {shlex.quote(python)}"
    )
