"""A model's weights out of its folder, every tensor accounted for."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lorakit.errors import ModelError
from lorakit.models import quantized
from lorakit.models.devices import torch_dtype
from lorakit.models.foreign import check_gradients
from lorakit.models.heap import large_pieces_apart
from lorakit.models.kept_packed import kept_packed
from lorakit.models.quiet import quiet
from lorakit.models.spec import FORMATS, PACKED, ModelSpec

_log = logging.getLogger("lorakit.models")


def read_model(cls: Any, config: Any, folder: Path, spec: ModelSpec) -> Any:
    """The model in memory, its blocks packed where `spec.base_dtype` or the folder says so.

    Args:
        cls: what loads it, see `class_of`.
        config: its configuration.
        folder: of its files, which are known to be whole.
        spec: number formats, and whether its code may run.

    Raises:
        ModelError: it cannot be loaded; a tensor is missing or has another shape.
    """
    kept = kept_packed(folder)
    if kept is None and spec.base_dtype == PACKED:
        raise ModelError(
            f"{folder} holds no packed weights that could stay so: leave --base-dtype out, or choose a "
            f"format ({', '.join(FORMATS)}) that they are packed in while they are read"
        )
    packed = spec.base_dtype in FORMATS
    hooks = {} if kept is None or packed else kept.arguments(config)
    try:
        with quiet(), large_pieces_apart() if packed or kept is not None else nullcontext():
            if packed:
                answer: Any = quantized.read(cls, config, folder, spec)
            else:
                answer = cls.from_pretrained(
                    folder,
                    config=config,
                    dtype=torch_dtype(spec),
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,  # so that the report names them, for `_account`
                    local_files_only=True,
                    trust_remote_code=spec.trust_remote_code,
                    output_loading_info=True,
                    **hooks,
                )
        loaded, report = answer
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"cannot load the model in {folder}: {one_line(error)}") from error
    _account(report, folder, set() if kept is None else kept.taken)
    if packed:
        quantized.check(loaded, spec.base_dtype)
    check_gradients(loaded)
    return loaded


def one_line(error: Exception) -> str:
    """The first sentence of another library's message, which may be a page of them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _account(report: Any, folder: Path, taken: set[str]) -> None:
    """Check that every tensor of the model came from the files, and warn of unused ones.

    Args:
        report: of transformers.
        folder: of the files.
        taken: names of tensors that are used without transformers.
    """
    missing = sorted(report["missing_keys"])
    wrong = [
        f"{name} {tuple(held)} for {tuple(due)}" for name, held, due in report["mismatched_keys"]
    ]
    extra = sorted(set(report["unexpected_keys"]) - taken)
    if missing:
        raise ModelError(
            f"the weights in {folder} lack {len(missing)} tensors of the model: "
            f"{', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}"
        )
    if wrong:
        raise ModelError(
            f"{len(wrong)} tensors in {folder} have other shapes than config.json says: "
            f"{', '.join(sorted(wrong)[:3])}"
        )
    if extra:
        _log.warning(
            "%s holds %d tensors that this model has no place for (first: %s); they are not used",
            folder,
            len(extra),
            extra[0],
        )
