"""A .pt file of microsoft/LoRA (loralib): `torch.save(lora.lora_state_dict(model), file)`.

It is a pickle, the one kind of file that lorakit opens though it could hold code: torch's
weights-only reader builds tensors and plain containers and refuses to call anything else.

    lora.Linear, lora.Embedding   lora_A (r, in)      lora_B (out, r)          scale alpha / r
    lora.MergedLinear             lora_A (k·r, in)    lora_B (out·k / n, r)    scale alpha / r

A MergedLinear has n parts (queries, keys, values) of which k are adapted, each by r rows of A and
its own rows of B. That is one pair of rank k·r whose B is block-diagonal over the adapted parts.
The file knows neither alpha nor which parts they are.

Source: loralib/layers.py.
"""

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.adapters.imports.fitting import find_module, kinds_of
from lorakit.adapters.pairs import Pair
from lorakit.errors import AdapterError, ConfigError
from lorakit.files.pointers import pointer_problem
from lorakit.files.tensors import require_finite
from lorakit.lora import equations
from lorakit.lora.kinds import geometry_of

_SIDES = (".lora_A", ".lora_B")
# Trainers save more than the weights: the state lies under one of these keys.
_NESTED = ("model_state_dict", "state_dict", "model")


def read_loralib(
    file: Path, model: nn.Module, *, alpha: float | None, parts: Sequence[bool] | None = None
) -> dict[str, Pair]:
    """The pairs of a loralib file, by the paths of their modules in the base.

    Args:
        file: what `torch.save` wrote.
        model: the base, which may be on the meta device.
        alpha: loralib's `lora_alpha`.
        parts: loralib's `enable_lora` of its MergedLinear layers; needed where not all are adapted.

    Raises:
        AdapterError: the file is broken, wants to run code, or holds what is no pair of this base.
        ConfigError: `alpha` is missing, or `parts` where it is needed.
    """
    tensors = _load(file)
    if alpha is None:
        raise ConfigError(f"{file} does not say its scale: give loralib's lora_alpha with --alpha")
    if not 0 < alpha < float("inf"):
        raise ConfigError(f"alpha must be above 0 and finite; it is {alpha}")
    require_finite(file, tensors)
    names = dict.fromkeys(_module(file, name) for name in tensors)
    kinds = kinds_of(model)
    pairs: dict[str, Pair] = {}
    for name in names:
        for side in _SIDES:
            if name + side not in tensors:
                raise AdapterError(f"{file} lacks {name}{side}; its pair is there")
        path = find_module(file, name, kinds)
        if path in pairs:
            raise AdapterError(f"{file} has two pairs that mean {path}")
        A, B = (tensors[name + side].float() for side in _SIDES)
        if A.dim() != 2 or B.dim() != 2 or kinds[path] == "conv":
            raise AdapterError(f"{file}: {name} is no linear layer or embedding: not imported")
        rank, outputs = B.shape[1], geometry_of(model.get_submodule(path), path).out_features
        if (A.shape[0], B.shape[0]) != (rank, outputs):
            B = _block_diagonal(file, name, A, B, outputs, parts)
        scale = equations.scale(alpha, rank)
        pairs[path] = Pair(A, B, scale * A.shape[0], scale, kinds[path])
    return pairs


def _load(file: Path) -> dict[str, Tensor]:
    if problem := pointer_problem(file):
        raise AdapterError(f"{file} {problem}")
    try:
        with warnings.catch_warnings():
            # torch remarks on pickle protocols that are not its own; what matters is said below.
            warnings.simplefilter("ignore", UserWarning)
            found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise AdapterError(f"{file} cannot be read: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise AdapterError(
            f"{file} was not opened: it is no file of plain tensors, and opening it otherwise can "
            f"run code ({str(error).strip().splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise AdapterError(f"{file} is damaged or no file of torch.save: {error}") from error
    for key in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not found:
        raise AdapterError(f"{file} holds a {type(found).__name__}, not tensors by name")
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            raise AdapterError(f"{file} holds {name!r}, a {type(tensor).__name__} and no tensor")
    return dict(found)


def _module(file: Path, name: str) -> str:
    for side in _SIDES:
        if name.endswith(side):
            return name.removesuffix(side)
    what = "a trained bias" if name.endswith(".bias") else "no lora_A or lora_B"
    raise AdapterError(
        f"{file} holds {name}, {what}: save the pairs alone, with "
        "torch.save(loralib.lora_state_dict(model), file)"
    )


def _block_diagonal(
    file: Path, name: str, A: Tensor, B: Tensor, out: int, parts: Sequence[bool] | None
) -> Tensor:
    """B of a MergedLinear as one matrix (out, k·r).

    Args:
        A: (k·r, in).
        B: (out·k / n, r), the rows of the adapted parts one after the other.
        out: outputs of the layer, all n parts.
        parts: which of the n are adapted.
    """
    rank = B.shape[1]
    adapted, rest = divmod(A.shape[0], rank)
    rows = B.shape[0] // adapted if adapted else 0
    if rest or not rows or B.shape[0] % adapted or out % rows:
        raise AdapterError(
            f"{file}: {name} has lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}, which are "
            f"neither those of a Linear nor of a MergedLinear with {out} outputs"
        )
    count = out // rows
    if parts is None and adapted < count:
        raise ConfigError(
            f"{file}: {name} adapts {adapted} of its {count} parts, and does not say which: give "
            "loralib's enable_lora with --enable-lora, such as 1,0,1"
        )
    chosen = [True] * count if parts is None else list(parts)
    if len(chosen) != count or sum(chosen) != adapted:
        raise ConfigError(
            f"{file}: {name} adapts {adapted} of {count} parts; --enable-lora names "
            f"{sum(chosen)} of {len(chosen)}"
        )
    whole = torch.zeros(out, A.shape[0])
    for block, part in enumerate(index for index, on in enumerate(chosen) if on):
        there = slice(part * rows, (part + 1) * rows)
        whole[there, block * rank : (block + 1) * rank] = B[block * rows : (block + 1) * rows]
    return whole
