"""Which elements of a pair are trained, and which tensors at a rate of their own.

LoRA+ (arXiv 2402.12354): B's learning rate is `lora_plus` times A's,

    A ← A - η·AdamW(∂L/∂A)        B ← B - λ·η·AdamW(∂L/∂B)

as of `torch.optim.AdamW` with two groups of parameters. Elements that stay as they began
(`lorakit.lora.initialising`) have no gradient: neither the norm for clipping nor weight decay sees them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn

from lorakit.lora import LoraLayer
from lorakit.lora.initialising import trained_elements
from lorakit.training.spec import TrainSpec


@dataclass(frozen=True)
class Rates:
    """What departs from "every element, at the step's rate".

    Attributes:
        factors: of parameters whose rate is not the step's, how many times that it is.
        trained: of parameters with elements that stay, a mask: True where an element is trained.
    """

    factors: Mapping[nn.Parameter, float] = field(default_factory=dict)
    trained: Mapping[nn.Parameter, Tensor] = field(default_factory=dict)


EVERYTHING = Rates()


def rates_of(layers: Iterable[LoraLayer], spec: TrainSpec) -> Rates:
    """The rates of the pairs of a run.

    B of an embedding has the step's rate: there A is the matrix that begins at zero.
    """
    factors, trained = dict[nn.Parameter, float](), dict[nn.Parameter, Tensor]()
    for layer in layers:
        trained |= trained_elements(layer)
        if spec.lora_plus != 1.0 and layer.geometry.kind != "embedding":
            factors[layer.B] = spec.lora_plus
    return Rates(factors, trained)


class FlatRates:
    """Rates over the one flat buffer of an optimizer.

    Args:
        rates: of its parameters.
        spans: where each parameter lies.
        flat: the buffer.

    Attributes:
        trained: (n,) True where an element is trained; None where all are.
    """

    def __init__(self, rates: Rates, spans: Mapping[nn.Parameter, slice], flat: Tensor) -> None:
        self.trained: Tensor | None = None
        if any(parameter in rates.trained for parameter in spans):
            self.trained = torch.ones_like(flat, dtype=torch.bool)
            for parameter, part in spans.items():
                if parameter in rates.trained:
                    self.trained[part] = rates.trained[parameter].reshape(-1)
        ordered = sorted(spans.items(), key=lambda item: item[1].start)
        runs = groupby(ordered, key=lambda item: rates.factors.get(item[0], 1.0))
        self._runs = []
        for factor, run in runs:
            parts = [part for _, part in run]
            self._runs.append((factor, parts[0].start, parts[-1].stop))

    def of(self, part: slice) -> Iterator[tuple[float, list[slice]]]:
        """Of a part of the buffer its pieces by their factor, counted from the part's first element."""
        pieces: dict[float, list[slice]] = {}
        for factor, start, stop in self._runs:
            first, last = max(start, part.start), min(stop, part.stop)
            if first < last:
                piece = slice(first - part.start, last - part.start)
                pieces.setdefault(factor, []).append(piece)
        yield from pieces.items()
