"""Cutting what a module is given into rectangles of sequences, and joining what it gives.

A packed row holds sequences one after another; a group of similar lengths becomes a rectangle (n, M) padded on
the right. Along which axes of a tensor its tokens lie was seen when the module was tried (mixing.py).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorakit.errors import ModelError
from lorakit.kernels.layout import Layout, PaddedGroup

Axes = tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class SequenceGroup:
    """Sequences that are called together: `rows` (n·M,), `real`, `tokens` as in `PaddedGroup`."""

    count: int
    length: int
    rows: Tensor
    real: Tensor | None
    tokens: Tensor


def sequence_groups(where: Layout, *, together: bool) -> list[SequenceGroup]:
    """Sequences of similar lengths in one group, or each in a group of its own."""
    if together:
        return [_group(each) for each in where.groups]
    device = where.groups[0].rows.device
    groups, start = [], 0
    for n in where.lengths:
        rows = torch.arange(start, start + n, device=device)
        groups.append(SequenceGroup(1, n, rows, None, rows))
        start += n
    return groups


def _group(group: PaddedGroup) -> SequenceGroup:
    whole = len(group.real) == len(group.rows)
    real = None if whole else group.real
    return SequenceGroup(group.count, group.length, group.rows, real, group.tokens)


def fitting(axes: tuple[Axes, ...], leaves: list[Any], total: int) -> list[Axes]:
    """The axes of tokens in each leaf; a tensor that was none when the module was tried is looked at."""
    if len(axes) != len(leaves):
        raise ModelError(
            "a module that mixes tokens is called in another way than when it was tried"
        )
    return [
        tuple(axis for axis, size in enumerate(leaf.shape) if axis and size == total)
        if each is None and isinstance(leaf, Tensor)
        else each
        for each, leaf in zip(axes, leaves, strict=True)
    ]


def taken(leaf: Any, axes: Axes, group: SequenceGroup) -> Any:
    """The part of an argument that belongs to a group: its tokens in a rectangle, (n, …, M, …)."""
    if not isinstance(leaf, Tensor) or not axes:
        return leaf
    n, length, rows = group.count, group.length, group.rows
    if len(axes) == 1 and _numbered(leaf):  # counted from the row's start: from the sequence's
        axis = axes[0]
        places = torch.arange(length, device=leaf.device).to(leaf.dtype)
        shape = [1] * leaf.dim()
        shape[axis] = length
        return places.view(shape).expand(*leaf.shape[:axis], length, *leaf.shape[axis + 1 :])
    if axes == (0,):  # tokens without a batch: sequences one after another
        return leaf.index_select(0, rows)
    if len(axes) == 1:
        axis = axes[0]
        cut = leaf.index_select(axis, rows).unflatten(axis, (n, length)).movedim(axis, 0)
        return cut.flatten(0, 1)  # (n·1, …), or (n·heads, …) where heads lie in the batch
    if len(axes) == 2 and 0 not in axes:
        return _mask_taken(leaf.movedim(axes, (-2, -1)), group).movedim((-2, -1), axes)
    raise ModelError("a module that mixes tokens gets them along axes that cannot be cut")


def _numbered(leaf: Tensor) -> bool:
    """Whether these are the places 0, 1, 2, … of the row's tokens, and nothing else."""
    if leaf.is_floating_point() or leaf.dtype == torch.bool:
        return False
    return torch.equal(leaf.flatten(), torch.arange(leaf.numel(), device=leaf.device))


def _mask_taken(mask: Tensor, group: SequenceGroup) -> Tensor:
    """(n·batch, …, M, M) of a mask or bias (batch, …, T, T) over queries and keys.

    Padded keys, which repeat a sequence's last token, are hidden as the row's last token is hidden
    from its first; padded queries see what that last token sees, so that nothing is without a key.
    """
    n, length = group.count, group.length
    rows_nM = group.rows.view(n, length)
    apart = mask[..., rows_nM[:, :, None], rows_nM[:, None, :]]
    if group.real is not None:
        real = torch.zeros(n * length, dtype=torch.bool, device=mask.device)
        real[group.real] = True
        apart = torch.where(real.view(n, 1, length), apart, mask[..., :1, -1:, None])
    return apart.movedim(-3, 0).flatten(0, 1)


def merged(parts: list[Any], groups: list[SequenceGroup], axes: Axes, total: int) -> Any:
    """One output of all groups, its tokens in the row's order again; zeros for those of no sequence."""
    if not isinstance(parts[0], Tensor) or not axes:
        return parts[0]
    if len(axes) != 1:
        return None  # probabilities of attention and the like, which nobody asked for
    axis, tokens = axes[0], []
    for part, group in zip(_as_wide(parts, axis), groups, strict=True):
        flat = part if axis == 0 else part.movedim(axis, 1).flatten(0, 1)
        tokens.append(flat if group.real is None else flat.index_select(0, group.real))
    flat = torch.cat(tokens)
    places = torch.cat([group.tokens for group in groups])
    row = flat.new_zeros(total, *flat.shape[1:]).index_copy(0, places, flat)
    return row if axis == 0 else row[None].movedim(1, axis)


def _as_wide(parts: list[Tensor], axis: int) -> list[Tensor]:
    """Parts alike in all sizes but the tokens': the k best keys are fewer where there are fewer than k.

    The last of them is repeated: a set of keys stays the same.
    """
    widest = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    wide = []
    for part in parts:
        for other in range(axis + 1, part.dim()):
            if part.shape[other] < widest[other]:
                places = torch.arange(widest[other], device=part.device)
                part = part.index_select(other, places.clamp_max(part.shape[other] - 1))
        wide.append(part)
    return wide
