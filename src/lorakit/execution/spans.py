"""Which tokens before it a token attends to: read off the mask functions that transformers builds masks with.

A mask function is f(batch, head, query, key) of places in a sequence. A layer whose window or chunk is in
its mask alone says so nowhere else, so the function is asked along the whole context of the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorakit.errors import ModelError

MaskFunction = Callable[[Any, Any, Tensor, Tensor], Tensor]
_MOST_PLACES = 1 << 17


@dataclass(frozen=True)
class Span:
    """What a token at place i of its sequence sees of the tokens at places j ≤ i.

    Attributes:
        window: those with i - j < window; None: no window.
        chunk: those with i // chunk = j // chunk; None: no chunks.
        function: those for which this mask function says so, where it has no simpler form.
    """

    window: int | None = None
    chunk: int | None = None
    function: MaskFunction | None = None

    def seen(self, query: Tensor, key: Tensor) -> Tensor:
        """True where a query's place sees a key's place; the places are broadcast."""
        seen = key <= query
        if self.window is not None:
            seen = seen & (query - key < self.window)
        if self.chunk is not None:
            seen = seen & (query // self.chunk == key // self.chunk)
        if self.function is not None:
            seen = seen & _asked(self.function, query, key)
        return seen

    def within(self, length: int) -> "Span":
        """The same for sequences of up to this length: limits that they do not reach are left out."""
        window = None if self.window is not None and self.window >= length else self.window
        chunk = None if self.chunk is not None and self.chunk >= length else self.chunk
        return Span(window, chunk, self.function)


CAUSAL = Span()


def read_span(function: MaskFunction, places: int, device: torch.device) -> Span:
    """What a mask function lets a token see.

    Args:
        function: of transformers.
        places: the longest sequence of the model.
        device: where the function's own tensors are.

    Raises:
        ModelError: a token sees later ones, or not itself, or the function depends on more than places.
    """
    count = max(2, min(places, _MOST_PLACES))
    every = torch.arange(count, device=device)
    try:
        first = _asked(function, every, torch.zeros_like(every))
        size = int(first.sum())
        some = _places_around(size, count, device)
        seen = _asked(function, some[:, None], every[None])
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"its mask depends on more than places: {error}") from error
    if bool((seen & (every[None] > some[:, None])).any()):
        raise ModelError("a token sees later tokens")
    if not bool(_asked(function, every, every).all()):
        raise ModelError("a token does not see itself")
    simple = (CAUSAL,) if size == count else (Span(window=size), Span(chunk=size))
    for span in simple:
        if torch.equal(span.seen(some[:, None], every[None]), seen):
            return span
    return Span(function=function)


def _places_around(size: int, count: int, device: torch.device) -> Tensor:
    """Places where windows and chunks of this size begin and end, and a few others."""
    generator = torch.Generator().manual_seed(0)
    some = {0, 1, count // 2, count - 1}
    for k in (1, 2, 3):
        some |= {k * size - 1, k * size, k * size + 1}
    some |= set(torch.randint(count, (8,), generator=generator).tolist())
    return torch.tensor(sorted(i for i in some if 0 <= i < count), device=device)


def _asked(function: MaskFunction, query: Tensor, key: Tensor) -> Tensor:
    """The function's answer for broadcast places, of the first row and head."""
    zero = torch.zeros((), dtype=torch.long, device=query.device)
    query, key = torch.broadcast_tensors(query, key)
    return function(zero, zero, query, key).expand(query.shape)


def hidden(span: Span, length: int, like: Tensor) -> Tensor:
    """(1, 1, M, M): -inf where a token does not see another of its sequence."""
    place = torch.arange(length, device=like.device)
    unseen = ~span.seen(place[:, None], place[None])
    zeros = torch.zeros(unseen.shape, dtype=like.dtype, device=like.device)
    return zeros.masked_fill_(unseen, -torch.inf)[None, None]
