"""Values of its own that an adapter has for parameters of a model: put in, read, and taken out again.

The parameter stands in the place of the base's own in every module that shares it, and `take_out`
puts the base's back: its bytes were never changed. Code that reads a weight without calling its
module (an output head computed in chunks, a fused block) so reads the right one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lorakit.lora.layers import LoraLayer
from lorakit.lora.whole import Whole


@dataclass(frozen=True, eq=False)
class Change:
    """A value that stands in a model, and what stood there before.

    Attributes:
        what: which parameter it is.
        parameter: that stands in the model now.
        own: the base's; None of a bias that the base has not.
        holders: the modules that hold it, each with its name there.
    """

    what: Whole
    parameter: nn.Parameter
    own: nn.Parameter | None
    holders: tuple[tuple[nn.Module, str], ...]

    @property
    def value(self) -> Tensor:
        """The value as it is now."""
        return self.what.value_in(self.parameter, self.own)


_changes: "WeakKeyDictionary[nn.Module, tuple[Change, ...]]" = WeakKeyDictionary()


def own_values(model: nn.Module, what: Sequence[Whole]) -> list[Tensor]:
    """The values by which nothing changes: the base's own, and zeros for biases beside pairs."""
    values = []
    for whole in what:
        if whole.kind == "added":
            reference = next(model.parameters())
            values.append(torch.zeros(whole.shape, device=reference.device))
        else:
            own = _own(model, whole.names[0])
            assert own is not None
            values.append(own.detach()[list(whole.rows)] if whole.rows else own.detach())
    return values


def put(
    model: nn.Module, what: Sequence[Whole], values: Sequence[Tensor], *, trainable: bool = False
) -> None:
    """Let parameters of a model have these values, in place; what was put before is taken out.

    Only the chosen rows of a parameter are trained; the optimizer knows them by `trained_rows`.
    """
    take_out(model)
    changes = []
    for whole, value in zip(what, values, strict=True):
        own = _own(model, whole.names[0])
        parameter = nn.Parameter(whole.applied(own, value), requires_grad=trainable)
        if whole.rows:
            parameter.trained_rows = torch.tensor(whole.rows)  # type: ignore[attr-defined]
        holders = tuple(_holder(model, name) for name in whole.names)
        for module, name in holders:
            module._parameters[name] = parameter
        changes.append(Change(whole, parameter, own, holders))
    if changes:
        _changes[model] = tuple(changes)


def take_out(model: nn.Module) -> None:
    """Put the base's own parameters back, in place."""
    for change in reversed(_changes.pop(model, ())):
        for module, name in change.holders:
            module._parameters[name] = change.own


def changes_of(model: nn.Module) -> tuple[Change, ...]:
    """What stands in a model beside its pairs."""
    return _changes.get(model, ())


def _own(model: nn.Module, name: str) -> nn.Parameter | None:
    module, last = _holder(model, name)
    return module._parameters.get(last)


def _holder(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter, and its name there: of an adapted layer, its base."""
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    return (module.base if isinstance(module, LoraLayer) else module), last
