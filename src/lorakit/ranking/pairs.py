"""Pairs of concurrent jobs: put in, averaged, and their singular values."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lorakit.adapters.pairs import Pair, StoredAdapter, read_stored
from lorakit.lora import spectrum
from lorakit.lora.jobs import Jobs


@torch.no_grad()
def put_pairs(jobs: Jobs, job: int, stored: StoredAdapter) -> None:
    """Initialise a job's A and B with those of an adapter of the same ranks, whatever its scale."""
    for path, layer in jobs.layers[job].items():
        A, B = at_scale(stored.pairs[path], layer.scale)
        layer.A.copy_(A)
        layer.B.copy_(B)


def at_scale(pair: Pair, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of the same product at another scale, both changed alike."""
    root = math.sqrt(pair.scale / scale)
    return pair.A * root, pair.B * root


def spectra_of(folder: Path) -> dict[str, list[float]]:
    """Singular values of s·B·A by module, from the largest down.

    Of a parameter of experts, whose pairs have one rank, the i-th is the root of the sum of the squares of
    every expert's i-th: its square is what one more rank adds to all of them.
    """
    return {
        path: torch.stack([spectrum.spectrum(p.A, p.B, p.scale)[1] for p in pair.each])
        .square()
        .sum(dim=0)
        .sqrt()
        .tolist()
        for path, pair in read_stored(folder).pairs.items()
    }


class MeanPairs:
    """The mean of a job's A and B over its steps after a certain one.

    While the rate is high the last step's pairs wander about; two ranks then differ by where each
    happens to be, which the rest of the schedule would settle. Their means over a few steps lie near
    where they would settle (Izmailov et al., arXiv 1803.05407; Kaddour, arXiv 2209.14981).

    Args:
        jobs, job: whose pairs.
        after: the last step that does not count.
    """

    def __init__(self, jobs: Jobs, job: int, after: int) -> None:
        self._layers, self._after, self._count = jobs.layers[job], after, 0
        self._sums: list[torch.Tensor] = []

    def _pairs(self) -> list[torch.Tensor]:
        return [x.detach() for layer in self._layers.values() for x in (layer.A, layer.B)]

    def note(self, step: int) -> None:
        """A step is done."""
        if step <= self._after:
            return
        self._count += 1
        if not self._sums:
            self._sums = [x.clone() for x in self._pairs()]
        else:
            torch._foreach_add_(self._sums, self._pairs())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the job has the mean, where there is one; then its own pairs again."""
        own = [x.clone() for x in self._pairs()] if self._sums else []
        for x, total in zip(self._pairs(), self._sums, strict=False):
            x.copy_(total / self._count)
        try:
            yield
        finally:
            for x, before in zip(self._pairs(), own, strict=False):
                x.copy_(before)
