"""Where the tokens of a step of many sequences lie, and what each of them sees. Pure.

A step is one row of T tokens: of each sequence its next one, or a piece of its prompt. Each layer of
the model has a KV cache of cells, one for each token kept: (cells, 2, K, D), keys before values, D the
width of the wider of the two. A
sequence owns cells [start, start + size), size a power of two and start a multiple of it, so that the
sequences of one size are rows of a matrix and one call attends for all of them that decode; pieces of
prompts attend one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lorakit.execution.spans import Span

# Rows of a size that no sequence of the step owns are attended to in vain, up to this many between
# two that one does; a call of its own would cost more.
_GAP = 6


@dataclass(frozen=True)
class Place:
    """One sequence of a step.

    Attributes:
        start, size: its cells; size is a power of two, and start a multiple of it.
        past: tokens whose keys and values are there.
        count: tokens of this step, in the row in this order.
    """

    start: int
    size: int
    past: int
    count: int


@dataclass(frozen=True, eq=False)
class Decoding:
    """Rows [low, high) of a KV cache seen as rows of `size` cells, one token of each.

    `tokens` (n,): the step's token for each row; `real` (m,): the rows that have one, None for all;
    `places` (m,): the tokens of those; `lengths` (n,): cells each token sees, its own included.
    """

    low: int
    high: int
    size: int
    longest: int
    tokens: Tensor
    real: Tensor | None
    places: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Piece:
    """Tokens [first, last) of the step: a piece of one prompt, after `past` cells from `start`."""

    first: int
    last: int
    start: int
    past: int


@dataclass(frozen=True, eq=False)
class Step:
    """Where the tokens of a step go and what they see.

    Attributes:
        tokens: how many.
        cells: (T,) int64, the cell of each token.
        positions: (T,) int64, from 0 in each sequence.
        decoding, pieces: what attention works on.
        places: the sequences, in the order of the tokens.
    """

    tokens: int
    cells: Tensor
    positions: Tensor
    decoding: tuple[Decoding, ...]
    pieces: tuple[Piece, ...]
    places: tuple[Place, ...] = ()
    _masks: dict[Any, Tensor] = field(default_factory=dict)

    def hidden_from(self, group: Decoding, span: Span, like: Tensor) -> Tensor:
        """(n, 1, 1, longest): -inf where a row's token does not see a cell; made once a step."""
        key = (group, span, like.dtype)
        if key not in self._masks:
            cell = torch.arange(group.longest, device=like.device)
            seen = span.seen(group.lengths[:, None] - 1, cell)
            self._masks[key] = _minus_infinity(~seen, like)[:, None, None]
        return self._masks[key]

    def hidden_in(self, piece: Piece, span: Span, like: Tensor) -> Tensor:
        """(tokens, past + tokens): -inf where a token of a prompt does not see a cell."""
        key = (piece, span, like.dtype)
        if key not in self._masks:
            count = piece.last - piece.first
            cell = torch.arange(piece.past + count, device=like.device)
            mine = torch.arange(piece.past, piece.past + count, device=like.device)[:, None]
            self._masks[key] = _minus_infinity(~span.seen(mine, cell), like)
        return self._masks[key]


def _minus_infinity(where: Tensor, like: Tensor) -> Tensor:
    zeros = torch.zeros(where.shape, dtype=like.dtype, device=like.device)
    return zeros.masked_fill_(where, -torch.inf)


def plan_step(places: Sequence[Place], device: torch.device) -> Step:
    """What the layers of a step need to know, found once.

    Args:
        places: the sequences of the step, in the order of its tokens.
        device: of the model.
    """
    pieces: list[Piece] = []
    single: dict[int, list[tuple[int, int, int]]] = {}
    cells: list[int] = []
    positions: list[int] = []
    for place in places:
        first = len(cells)
        cells += range(place.start + place.past, place.start + place.past + place.count)
        positions += range(place.past, place.past + place.count)
        if place.count == 1:
            row = (place.start // place.size, first, place.past + 1)
            single.setdefault(place.size, []).append(row)
        else:
            pieces.append(Piece(first, first + place.count, place.start, place.past))
    decoding = [
        _decoding(part, size, device)
        for size, rows in sorted(single.items())
        for part in _without_gaps(sorted(rows))
    ]
    return Step(
        len(cells),
        torch.tensor(cells, device=device),
        torch.tensor(positions, device=device),
        tuple(decoding),
        tuple(pieces),
        tuple(places),
    )


def _without_gaps(rows: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    parts = [[rows[0]]]
    for row in rows[1:]:
        if row[0] - parts[-1][-1][0] > _GAP:
            parts.append([])
        parts[-1].append(row)
    return parts


def _decoding(rows: list[tuple[int, int, int]], size: int, device: torch.device) -> Decoding:
    low, high = rows[0][0], rows[-1][0] + 1
    tokens, lengths = [0] * (high - low), [1] * (high - low)
    for row, token, length in rows:
        tokens[row - low], lengths[row - low] = token, length
    real = [row - low for row, _, _ in rows]
    return Decoding(
        low,
        high,
        size,
        max(lengths),
        torch.tensor(tokens, device=device),
        torch.tensor(real, device=device) if len(real) < high - low else None,
        torch.tensor([token for _, token, _ in rows], device=device),
        torch.tensor(lengths, device=device),
    )
