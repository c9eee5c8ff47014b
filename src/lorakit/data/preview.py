"""What `lorakit check` shows of the rows before anything is trained. Pure functions."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorakit.data.table import Encoded, TokenTable
from lorakit.data.template import Tokenizer


@dataclass(frozen=True)
class Lengths:
    """How long rows are, in tokens.

    percentiles: {50: …, 90: …, 99: …}. counts[i] rows are edges[i] to edges[i + 1] - 1 long.
    loss_share: supervised tokens divided by all tokens.
    """

    rows: int
    tokens: int
    loss_tokens: int
    shortest: int
    longest: int
    percentiles: dict[int, int]
    edges: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def loss_share(self) -> float:
        """Supervised tokens divided by all tokens."""
        return self.loss_tokens / self.tokens if self.tokens else 0.0


def lengths(table: TokenTable, bins: int = 12) -> Lengths:
    """The histogram of row lengths, in at most `bins` bars of equal, round width."""
    if not len(table):
        return Lengths(0, 0, 0, 0, 0, dict.fromkeys((50, 90, 99), 0), (), ())
    tokens_S = table.lengths
    low, high = int(tokens_S.min()), int(tokens_S.max())
    width = _round_up((high - low + 1) / bins)
    start = low // width * width
    edges = np.arange(start, high + width + 1, width)
    counts, _ = np.histogram(tokens_S, bins=edges)
    if counts[-1] == 0:
        edges, counts = edges[:-1], counts[:-1]
    return Lengths(
        rows=len(table),
        tokens=table.tokens,
        loss_tokens=table.loss_tokens,
        shortest=low,
        longest=high,
        percentiles={p: int(np.percentile(tokens_S, p, method="higher")) for p in (50, 90, 99)},
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )


def _round_up(width: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    ten = 1
    while True:
        for step in (1, 2, 5):
            if step * ten >= width:
                return step * ten
        ten *= 10


@dataclass(frozen=True)
class Fragment:
    """The text of one token (of a few, where they share a character), and its loss mask."""

    text: str
    supervised: bool


def fragments(encoded: Encoded, tokenizer: Tokenizer) -> list[Fragment]:
    """A row token by token, as text to colour. The texts joined are the whole row."""
    result: list[Fragment] = []
    ids, shown = encoded.ids.tolist(), ""
    for t in range(len(ids)):
        # Decoded from the start each time: a token alone may lose its leading space, and a letter
        # beyond ASCII may be spread over several tokens (until the last it decodes to U+FFFD).
        text = tokenizer.decode(ids[: t + 1], clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and t + 1 < len(ids):
            continue
        result.append(Fragment(text[len(shown) :], bool(encoded.weight[t])))
        shown = text
    return result


def _contents(table: TokenTable) -> NDArray[np.uint64]:
    """A 64-bit hash of each row's tokens and weights, (S,)."""
    hashes_S = np.empty(len(table), dtype=np.uint64)
    for i, row in enumerate(table):
        content = hashlib.blake2b(row.ids.tobytes() + row.weight.tobytes(), digest_size=8)
        hashes_S[i] = int.from_bytes(content.digest(), "little")
    return hashes_S


def shared_rows(train: TokenTable, held_out: TokenTable) -> list[tuple[int, int]]:
    """Rows that occur in both, token for token: (held-out row, first such training row)."""
    unique, first = np.unique(_contents(train), return_index=True)
    contents = _contents(held_out)
    at = np.searchsorted(unique, contents)
    at[at == len(unique)] = 0
    hits = np.flatnonzero(unique[at] == contents) if len(unique) else np.empty(0, dtype=np.intp)
    return [(int(i), int(first[at[i]])) for i in hits]


def repeated_rows(table: TokenTable) -> list[tuple[int, ...]]:
    """Groups of rows that are the same, token for token; only groups of two and more.

    In the order in which the groups begin.
    """
    contents = _contents(table)
    order = np.argsort(contents, kind="stable")
    borders = np.flatnonzero(np.diff(contents[order])) + 1
    groups = [tuple(g.tolist()) for g in np.split(order, borders) if len(g) > 1]
    return sorted(groups)
