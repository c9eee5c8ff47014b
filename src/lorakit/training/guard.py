"""After the first step: what should move has moved, and the base has not."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lorakit.errors import DivergedError
from lorakit.lora import LoraLayer, lora_layers

_SAMPLE = 1024


class FirstStepGuard:
    """Remembers the model before its first step, and looks at it after.

    The base is compared on an even sample of each tensor, since a 7-billion-parameter base
    should not be copied for a check; the tests compare every byte.

    Args:
        model: before its first step.
        moved: what the optimizer moves of a trained parameter. A first small step may be lost in
            the rounding of a 16-bit weight, and shows in its master copy alone.
        layers: the adapted layers that are trained; those of the model if left out.
    """

    def __init__(
        self,
        model: nn.Module,
        moved: Callable[[nn.Parameter], Tensor] = lambda p: p,
        layers: Mapping[str, LoraLayer] | None = None,
    ) -> None:
        self._model = model
        self._moved = moved
        self._frozen = {
            name: _sample(p).clone() for name, p in model.named_parameters() if not p.requires_grad
        }
        self._trained = {
            name: _sample(moved(p)).clone()
            for name, p in model.named_parameters()
            if p.requires_grad
        }
        self._layers = lora_layers(model) if layers is None else layers
        self._first = {
            path: layer.get_parameter(layer.target.start.moves)
            for path, layer in self._layers.items()
        }
        self._before = {path: tensor.detach().clone() for path, tensor in self._first.items()}

    def check(self, learning_rate: float) -> list[str]:
        """Notes on pairs that the first step did not reach.

        Raises:
            DivergedError: nothing moved, or a frozen weight did.
        """
        parameters = dict(self._model.named_parameters())
        moved = [
            n for n, old in self._frozen.items() if not torch.equal(_sample(parameters[n]), old)
        ]
        if moved:
            raise DivergedError(
                f"after the first step the frozen weight {moved[0]} has changed "
                f"({len(moved)} in all): something outside the adapter writes to the base"
            )
        if self._before:
            still = [p for p, old in self._before.items() if torch.equal(self._first[p], old)]
            everything = len(self._before)
        else:
            still = [
                name
                for name, old in self._trained.items()
                if torch.equal(_sample(self._moved(parameters[name])), old)
            ]
            everything = len(self._trained)
        if len(still) == everything:
            raise DivergedError(
                f"after the first step (learning rate {learning_rate:g}) nothing has moved: no "
                "gradient reaches the trained parameters"
            )
        if still:
            return [
                f"the first step reached {everything - len(still)} of {everything} trained "
                f"modules; not {still[0]}" + (f" and {len(still) - 1} more" if still[1:] else "")
            ]
        return []


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLE)]
