"""The tensors of an adapter's file beside a model's plan: every one of both finds its place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lorakit.adapters.beside import values_in
from lorakit.adapters.names import expected_shapes, whole_weight_of
from lorakit.adapters.peft_config import CONFIG
from lorakit.adapters.refusals import merged_by_peft
from lorakit.errors import AdapterError, did_you_mean
from lorakit.lora import Plan


@dataclass(frozen=True, eq=False)
class Tensors:
    """Tensors of the pairs by name, and the values of what is changed beside them, in the plan's order."""

    pairs: Mapping[str, Tensor]
    beside: Sequence[Tensor]


def account(
    model: nn.Module, file: Path, made: Plan, tensors: Mapping[str, Tensor], notes: list[str]
) -> Tensors:
    """The tensors, once every one of file and plan has found its place."""
    expected = expected_shapes(made.targets)
    beside, used = values_in(file, tensors, made.whole, [target.path for target in made.targets])
    for name in tensors:
        if name in expected or name in used:
            continue
        path = whole_weight_of(name)
        if path is None:
            raise AdapterError(
                f"{file} holds {name}, which has no place in the model; "
                + did_you_mean(name, expected)
            )
        compared = _check_copy(model, file, name, path, tensors[name])
        told = "is a copy of the base's own weight and was" if compared else "was not compared and"
        notes.append(f"{name} {told} set aside")
    for name, shape in expected.items():
        if name not in tensors:
            raise AdapterError(f"{file} lacks {name}; " + did_you_mean(name, tensors))
        if tuple(tensors[name].shape) != shape:
            raise AdapterError(
                f"{file}: {name} is {_by(tensors[name].shape)}, and the model and {CONFIG} make "
                f"it {_by(shape)}"
            )
    return Tensors({name: tensors[name] for name in expected}, beside)


def _check_copy(model: nn.Module, file: Path, name: str, path: str, saved: Tensor) -> bool:
    """peft keeps the whole embedding beside a pair on it; lorakit takes the base's own.

    False where the model has shapes alone (the meta device), so that numbers were not compared.
    """
    own = _weights(model).get(path)
    if own is None:
        raise AdapterError(
            f"{file} holds {name}, and the model has no weight at {path}; "
            + did_you_mean(path, _weights(model))
        )
    same = saved.shape == own.shape
    if not own.is_meta:
        same = same and torch.equal(saved.to(own.device, own.dtype), own)
    if not same:
        raise AdapterError(
            f"{file} holds {name} {_by(saved.shape)}, a whole weight that is not the base's own "
            f"{_by(own.shape)}: tokens were added, or the base is another; lorakit keeps the "
            f"base as it is. {merged_by_peft(file.parent)}"
        )
    return not own.is_meta


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        name.removesuffix(".weight"): parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name.endswith(".weight")
    }


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)
