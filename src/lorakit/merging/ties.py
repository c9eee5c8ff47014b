"""Weights that several modules share: which of them config.json ties, and a model in which none is shared."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from lorakit.errors import TargetError
from lorakit.lora.changing import changes_of
from lorakit.lora.planning import Target
from lorakit.lora.sharing import tied_parameters
from lorakit.lora.whole import Whole


def tied_groups(targets: Iterable[Target]) -> list[tuple[str, ...]]:
    """Paths of the modules that share a weight with an adapted one, by adapted module, itself first."""
    return [(target.path, *target.tied_to) for target in targets if target.tied_to]


def split_groups(model: nn.Module, whole: Iterable[Whole]) -> list[tuple[str, ...]]:
    """Paths of modules that share a weight of which an adapter has a value of its own for some alone.

    Args:
        model: the base, without the adapter; may be on the meta device.
        whole: what the adapter changes beside its pairs.
    """
    names = {name: each.names for each in whole for name in each.names}
    return [
        tuple(name.removesuffix(".weight") for name in tie)
        for tie in tied_parameters(model)
        if any(name in names and set(names[name]) != set(tie) for name in tie)
    ]


def split_in(model: nn.Module) -> list[tuple[str, ...]]:
    """The same of a model in which the adapter stands, pairs or none."""
    groups: list[tuple[str, ...]] = []
    changes = changes_of(model)
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.replace(".base.", "."))
    for change in changes:
        others = owners.get(id(change.own), []) if change.own is not None else []
        others += [
            name
            for other in changes
            if other is not change and other.own is change.own is not None
            for name in other.what.names
        ]
        if others:
            named = dict.fromkeys((*change.what.names, *others))
            groups.append(tuple(name.removesuffix(".weight") for name in named))
    return groups


def require_tied_by_config(model: Any, groups: Sequence[Sequence[str]]) -> None:
    """See that the ties of some modules are ones that the configuration can undo.

    Args:
        model: of transformers; may be on the meta device.
        groups: see `tied_groups`.

    Raises:
        TargetError: a tie is not, so that the weights would be tied again when the model is loaded.
    """
    by_config = getattr(model.config, "tie_word_embeddings", False)
    declared = model.get_expanded_tied_weights_keys(all_submodels=True) if by_config else {}
    for paths in groups:
        # Of a tie, all but the one that the others follow are declared.
        if sum(f"{path}.weight" in declared for path in paths) < len(paths) - 1:
            why = "does not name this tie" if by_config else "is off"
            raise TargetError(
                f"{paths[0]} shares its weight with {paths[1]}, but the model's tie_word_embeddings "
                f"{why}: the merged model would tie them again when it is loaded; keep the adapter, "
                "or train one without these targets"
            )


def untie(model: Any) -> None:
    """Give every module its own copy of a weight that it shares, in place; the configuration says so."""
    for names in tied_parameters(model):
        for name in names[1:]:
            path, _, last = name.rpartition(".")
            own = model.get_parameter(name)
            copied = nn.Parameter(own.detach().clone(), requires_grad=own.requires_grad)
            setattr(model.get_submodule(path), last, copied)
    config = model.config
    for part in {id(each): each for each in (config, config.get_text_config())}.values():
        if getattr(part, "tie_word_embeddings", False):
            part.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
