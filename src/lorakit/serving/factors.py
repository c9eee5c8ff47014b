"""What adapters multiply the outputs of a base's layers by, read off its weights when they are loaded."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.adapters.pairs import Pair
from lorakit.kernels.slots import OutputFactors
from lorakit.lora.planning import Target
from lorakit.lora.rows import BaseRows
from lorakit.lora.variant import Capability, Variant

Scaled = tuple[Tensor, Tensor, float] | None
"""A, B and s of a pair; None for a layer without one."""


class BaseFactors:
    """Reads factors off the layers of one base, whose own norms are computed once.

    Args:
        model: the base; None where no adapter has factors.
        targets: its layers by path.
    """

    def __init__(self, model: nn.Module | None, targets: Mapping[str, Target]) -> None:
        self._model, self._targets = model, targets
        self._rows: dict[str, BaseRows] = {}

    def pairs_of(
        self, pairs: Mapping[str, Pair | None], variant: Variant
    ) -> tuple[list[Scaled], OutputFactors | None]:
        """The pairs of layers that share their input as slots take them: factors in B, and the rest beside.

        Args:
            pairs: of each layer by path.
            variant: of the adapter.

        Raises:
            ValueError: a tensor has another shape than the layer asks for.
        """
        plain: list[Scaled] = [None if p is None else (p.A, p.B, p.scale) for p in pairs.values()]
        if Capability.FACTOR not in variant.capabilities or not any(pairs.values()):
            return plain, None
        written: list[Scaled] = []
        beyond, offsets, biased = [], [], False
        for path, pair in pairs.items():
            geometry = self._targets[path].geometry
            more, offset = (torch.zeros(geometry.out_features) for _ in range(2))
            if pair is None:
                written.append(None)
            else:
                more = self._beyond(path, pair, variant)
                bias = geometry.bias(self._layer(path))
                if bias is not None:
                    biased, offset = True, -more * bias.float().cpu()
                written.append((pair.A, pair.B * (1 + more)[:, None], pair.scale))
            beyond.append(more)
            offsets.append(offset)
        return written, OutputFactors(torch.cat(beyond), torch.cat(offsets) if biased else None)

    @torch.no_grad()
    def _beyond(self, path: str, pair: Pair, variant: Variant) -> Tensor:
        """F - 1 of each output of a layer, float32 on the CPU."""
        layer, geometry = self._layer(path), self._targets[path].geometry
        shapes = {name: tuple(tensor.shape) for name, tensor in pair.tensors.items()}
        wanted = dict(variant.tensors(geometry, pair.rank))
        if shapes != wanted:
            raise ValueError(f"its tensors are {shapes}, for a layer with {wanted}")
        rows = self._rows.setdefault(path, BaseRows(geometry, layer))
        device = rows.squares().device
        tensors = {name: tensor.to(device) for name, tensor in pair.tensors.items()}
        factor = variant.factor(tensors, rows, pair.scale)
        assert factor is not None
        return factor.float().cpu() - 1

    def _layer(self, path: str) -> Any:
        assert self._model is not None, "factors are read off the base's weights"
        return self._model.get_submodule(path)
