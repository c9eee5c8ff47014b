"""The few shapes that batches are filled up to for CUDA graphs, and the buffers of each.

tokens          up to the next of few sizes; the tokens that fill it up are sequences of their own
sequences       up to the next power of two; those that fill it up are empty
supervised      up to the next of few sizes; a negative label counts for nothing
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorakit.data.batches import Batch
from lorakit.kernels.layout import OpenLayout


@dataclass(frozen=True)
class GraphShape:
    """What a graph is captured for.

    Attributes:
        tokens: T. sequences: S, those that fill it up included. longest: a bound of the longest.
        supervised: L.
    """

    tokens: int
    sequences: int
    longest: int
    supervised: int

    @classmethod
    def of(cls, lengths: Sequence[int], supervised: int) -> "GraphShape":
        """The smallest that holds these sequences, and one more of the tokens that fill it up."""
        tokens = _next_size(sum(lengths))
        rest = tokens - sum(lengths)
        return cls(
            tokens,
            _next_power(len(lengths) + 1, 8),
            _next_power(max(*lengths, rest), 64),
            _next_size(supervised),
        )


def _next_size(size: int) -> int:
    """Eight sizes for each doubling, multiples of 64 at the least: 6 % more on average."""
    step = max(64, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step


def _next_power(size: int, least: int) -> int:
    return max(least, 1 << (size - 1).bit_length())


class StaticBatch:
    """The buffers that a graph reads, of one shape."""

    def __init__(self, shape: GraphShape, device: torch.device) -> None:
        def zeros(size: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.shape = shape
        self.ids_T, self.positions_T = zeros(shape.tokens), zeros(shape.tokens)
        self.predict_L, self.labels_L = zeros(shape.supervised), zeros(shape.supervised)
        self.starts = zeros(shape.sequences + 1, torch.int32)
        self.nats = zeros(1, torch.float64)
        self.where = OpenLayout((shape.longest,), device, starts=self.starts)

    def fill(self, batch: Batch) -> None:
        """Take a batch that the shape holds."""
        tokens, supervised = batch.tokens, batch.token_count
        self.ids_T[:tokens] = batch.ids_T
        self.ids_T[tokens:] = 0
        self.positions_T[:tokens] = batch.positions_T
        self.positions_T[tokens:] = 0
        self.predict_L[:supervised] = batch.predict_L
        self.predict_L[supervised:] = 0
        self.labels_L[:supervised] = batch.labels_L
        self.labels_L[supervised:] = -1
        bounds = [0]
        for length in batch.lengths_S:
            bounds.append(bounds[-1] + length)
        bounds += [self.shape.tokens] * (len(self.starts) - len(bounds))
        self.starts.copy_(torch.tensor(bounds, dtype=torch.int32))
