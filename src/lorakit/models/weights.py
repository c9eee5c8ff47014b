"""Where each weight of a model lies in the files of its folder."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.errors import ModelError, did_you_mean
from lorakit.files.header import StoredTensor
from lorakit.models import files

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class OtherNamesError(ModelError):
    """transformers makes a parameter of tensors that have other names in the files."""


def tensors_of(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder by the name it has in its file.

    Raises:
        ModelError: a file is missing, broken, or pickled; a tensor is in two files.
    """
    places: dict[str, StoredTensor] = {}
    for file in files.weight_files(folder):
        for name, entry in files.read_entries(file).items():
            if name in places:
                raise ModelError(f"tensor {name} is in {places[name].file} and in {file}")
            places[name] = StoredTensor(file, name, entry)
    return places


def find(
    model: "PreTrainedModel", wanted: Iterable[str], held: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Where parameters of a model lie, by the names that they have in the model.

    A file may leave out the prefix of the model without its head (GPT-2's "transformer."), or
    have it where the model has not; of tied parameters it holds one; and what transformers renames
    while it loads (`names_in_model`) has its older name there.

    Args:
        model: the model, on the meta device if need be.
        wanted: names of parameters.
        held: see `tensors_of`.

    Raises:
        OtherNamesError: a parameter is not in the files under any of these names, as when
            transformers puts several tensors of the files together.
        ModelError: the files' tensor has another shape.
    """
    aliases: dict[int, list[str]] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        aliases.setdefault(id(parameter), []).append(name)
    prefix = f"{model.base_model_prefix}."
    renamed = {name: older for older, name in names_in_model(model, held).items()}
    found: dict[str, StoredTensor] = {}
    for name in wanted:
        same = [name, *aliases[id(parameters[name])]]
        tried = [n for alias in same for n in (alias, alias.removeprefix(prefix), prefix + alias)]
        hit = next((n for n in tried if n in held), None)
        hit = hit or next((renamed[n] for n in same if n in renamed), None)
        if hit is None:
            raise OtherNamesError(
                f"the files of this model hold no tensor {name}, because transformers makes it of "
                f"others when it loads them; {did_you_mean(name, held)}"
            )
        place, shape = held[hit], tuple(parameters[name].shape)
        found[name] = place
        if place.entry.shape != shape:
            raise ModelError(
                f"{place.file}: {hit} is {place.entry.shape}, and config.json makes it {shape}"
            )
    return found


def names_in_model(model: "nn.Module", names: Iterable[str]) -> dict[str, str]:
    """What transformers calls parameters while it loads files that have older names for them.

    Vision-language models had other paths before transformers 4.52: `language_model.model.layers.0` is
    `model.language_model.layers.0` since. peft renames the tensors of an adapter by the same rules.

    Args:
        model: may be on the meta device.
        names: of parameters, as files have them.

    Returns:
        The name in the model by the name in the files, of those that transformers renames one to one;
        nothing for a model that is not of transformers.
    """
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    if not isinstance(model, PreTrainedModel):
        return {}
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamed: dict[str, str] = {}
    for name in names:
        new, converter = rename_source_key(name, renamings, converters)
        if converter is None and new != name:
            renamed[name] = new
    return renamed


@dataclass(frozen=True)
class StackedName:
    """Where transformers puts the matrix of one expert: into a parameter of all experts.

    Attributes:
        target: name of that parameter in the model.
        part: which share of each expert's rows it is, from 0.
        parts: how many there are: 2 where the gate's matrix stands above another.
    """

    target: str
    part: int
    parts: int


def stacked_in_model(model: "nn.Module", names: Iterable[str]) -> dict[str, StackedName]:
    """Names of matrices of single experts, as older transformers had them -> where they are now.

    Args:
        model: may be on the meta device.
        names: of parameters, as files have them.

    Returns:
        Those that transformers' rules for the model's checkpoints stack by expert, and do no more with
        than laying parts of one expert under one another.
    """
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        Concatenate,
        MergeModulelist,
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    if not isinstance(model, PreTrainedModel):
        return {}
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    places: dict[str, tuple[int, int]] = {}
    for rule in converters:
        match rule.operations:
            case [MergeModulelist(dim=0)] if len(rule.source_patterns) == 1:
                pass
            case [MergeModulelist(dim=0), Concatenate(dim=1)]:
                pass
            case _:
                continue
        for part, pattern in enumerate(rule.source_patterns):
            places[pattern] = part, len(rule.source_patterns)
    stacked: dict[str, StackedName] = {}
    for name in names if places else ():
        new, source = rename_source_key(name, renamings, converters)
        if source in places:
            stacked[name] = StackedName(new, *places[source])
    return stacked


def conversion_family(model_type: str) -> str | None:
    """The family whose rule transformers takes to convert older checkpoints of this type of model.

    Args:
        model_type: of a configuration.

    Returns:
        Such as "qwen2_moe" for "deepseek_v3"; None where the type has no such rule, or where the
        installed transformers keeps no table of them.
    """
    from transformers import conversion_mapping

    table = getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {})
    # "mixtral" is its own rule, and stands in no table of others.
    family = table.get(model_type, model_type if model_type == "mixtral" else None)
    return None if family is None else str(family)
