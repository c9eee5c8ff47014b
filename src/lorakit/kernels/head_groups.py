"""Heads of packed sequences, laid out in groups for batched matmuls, and back."""

from collections.abc import Iterator

from torch import Tensor

from lorakit.kernels.layout import HeadRows, PaddedGroup, head_rows


def maps(
    q_THD: Tensor, k_TKD: Tensor, groups: tuple[PaddedGroup, ...]
) -> tuple[HeadRows, HeadRows]:
    """How queries and keys map onto the groups."""
    tokens = q_THD.shape[0]
    return head_rows(groups, tokens, q_THD.shape[1]), head_rows(groups, tokens, k_TKD.shape[1])


def take(x_THD: Tensor, rows: HeadRows) -> Tensor:
    """All heads of all groups as one (P·H, D)."""
    return x_THD.reshape(-1, x_THD.shape[2]).index_select(0, rows.take)


def back(x: Tensor, rows: HeadRows, like_THD: Tensor) -> Tensor:
    """The inverse of `take`, (T, H, D) with the T and H of `like`; zeros for tokens in no group."""
    out = x.index_select(0, rows.back)
    if rows.left_out.numel():
        out.index_fill_(0, rows.left_out, 0.0)
    return out.view(*like_THD.shape[:2], x.shape[1])


def split(
    groups: tuple[PaddedGroup, ...],
    queries: tuple[Tensor, ...],
    keys: tuple[Tensor, ...],
    key_heads: int,
) -> Iterator[tuple[PaddedGroup, list[Tensor], list[Tensor]]]:
    """Each group with its views of the (P·H, D): (n·K, G, M, D) of queries, (n·K, M, D) of keys."""
    places = sum(group.count * group.length for group in groups)
    shared = queries[0].shape[0] // (places * key_heads)
    start = 0
    for group in groups:
        n, length = group.count * key_heads, group.length
        size = n * length
        yield (
            group,
            [
                x[start * shared : (start + size) * shared].view(n, shared, length, x.shape[1])
                for x in queries
            ],
            [x[start : start + size].view(n, length, x.shape[1]) for x in keys],
        )
        start += size
