"""`lorakit import`: an adapter of another system -> lorakit's."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lorakit.adapters.imports import as_adapter, read_loralib, read_mlx
from lorakit.adapters.imports.mlx import TENSORS
from lorakit.config import RunConfig
from lorakit.errors import AdapterError, ConfigError
from lorakit.files.cache import Progress, no_progress
from lorakit.models import empty_model, identify
from lorakit.models.sources import resolve
from lorakit.run.commands.shaping import Output, of_base

Format = Literal["auto", "loralib", "mlx"]
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")


def run_import(
    config: RunConfig,
    *,
    file: Path,
    form: Format,
    output: Output,
    alpha: float | None = None,
    parts: Sequence[bool] | None = None,
    progress: Progress = no_progress,
) -> tuple[int, str, tuple[str, ...]]:
    """Read an adapter of another system and write it as one of lorakit's.

    Args:
        config: `model` names the base that it was trained on.
        file: loralib's .pt file; mlx-lm's folder, or the adapters.safetensors in it.
        form: whose; 'auto' goes by the name.
        output: where the result goes.
        alpha: loralib's `lora_alpha`.
        parts: loralib's `enable_lora`.
        progress: told of a download of the built-in model.

    Returns:
        How many pairs there are, where the adapter is, and what was decided while it was read.

    Raises:
        InputError: the file cannot be used, or does not fit the base.
    """
    if not file.exists():
        raise AdapterError(f"there is no file or folder {file}")
    form = _recognised(file) if form == "auto" else form
    if form == "mlx" and (alpha is not None or parts is not None):
        raise ConfigError("mlx-lm's folder says its own scale: leave --alpha and --enable-lora out")
    resolve(config.model, progress=progress)
    model = empty_model(config.model)
    if form == "mlx":
        folder = file if file.is_dir() else file.parent
        (pairs, notes), read = read_mlx(folder, model), folder / TENSORS
    else:
        pairs, read, notes = read_loralib(file, model, alpha=alpha, parts=parts), file, ()
    method = {
        "name": "import",
        "format": form,
        "file": read.name,
        "sha256": hashlib.sha256(read.read_bytes()).hexdigest(),
        "notes": list(notes),
    }
    made = as_adapter(pairs, model, source=file, identity=identify(config.model), method=method)
    return len(pairs), output.keep(of_base(made, config.model)), notes


def _recognised(file: Path) -> Literal["loralib", "mlx"]:
    if (file / TENSORS).is_file() or file.name == TENSORS:
        return "mlx"
    if file.is_file() and file.suffix in _PICKLES:
        return "loralib"
    if (file / "adapter_model.safetensors").is_file():
        raise AdapterError(f"{file} is in peft's format, which lorakit reads as it is")
    raise AdapterError(
        f"{file} is neither loralib's (a {_PICKLES[0]} file) nor mlx-lm's (a folder with "
        f"{TENSORS}): say which with --format"
    )
