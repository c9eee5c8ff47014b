"""What a model has once and uses at several places: whole modules, and weights that are tied."""

from collections import defaultdict
from collections.abc import Collection, Mapping

from torch import nn

from lorakit.errors import TargetError


def check_shared(model: nn.Module, chosen: Collection[str]) -> None:
    """A module in one parent that stands at several paths (Zamba's shared block) has one pair, at its first
    path, as peft names it too. In several parents peft would replace it in the first alone.

    Raises:
        TargetError: a chosen module stands in several parents.
    """
    paths: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        paths[id(module)].append(path)
    for same in paths.values():
        if len(same) > 1 and set(same) & set(chosen):
            parents = {id(model.get_submodule(path.rpartition(".")[0])) for path in same}
            names = {path.rpartition(".")[2] for path in same}
            if len(parents) == len(names) == 1:
                continue
            raise TargetError(
                f"one module stands at {' and '.join(same)}; a pair would count at each of them: "
                "exclude it, or give the model separate modules"
            )


def tied_parameters(model: nn.Module) -> list[tuple[str, ...]]:
    """Names of each parameter that several modules hold, the first module's first; all such parameters.

    A module that stands at several paths holds its parameters once.
    """
    owners: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners[id(parameter)].append(f"{path}.{name}" if path else name)
    return [tuple(names) for names in owners.values() if len(names) > 1]


def tied_weights(modules: Mapping[str, nn.Module]) -> dict[str, tuple[str, ...]]:
    """Of each module by path, the paths of the others that share its weight tensor."""
    owners: dict[int, list[str]] = defaultdict(list)
    for path, module in modules.items():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "weight":
                owners[id(parameter)].append(path)
    others: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for paths in owners.values():
        for path in paths:
            others[path] = tuple(other for other in paths if other != path)
    return others
