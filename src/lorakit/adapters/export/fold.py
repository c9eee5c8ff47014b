"""The same s·B·A in a plainer form, for runtimes that know one scale or one rank.

    s · B · A = s' · (s/s' · B) · A                          a factor moves into B
    B · A = [B 0] · [A; 0]                                   zero rows and columns add nothing

A is never multiplied, so that only B is rounded, once, and not at all by a power of two.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from torch.nn.functional import pad

from lorakit.adapters.pairs import Pair
from lorakit.lora import equations


def with_alpha(pair: Pair, alpha: float, rank: int | None = None) -> Pair:
    """The pair at scale alpha / rank, with what that changes moved into B.

    Args:
        pair: of a linear layer or an embedding: A (rank, in), B (out, rank).
        alpha: numerator of the new scale.
        rank: the new rank, not lower than its own; None keeps it.
    """
    rank = rank or pair.rank
    scale = equations.scale(alpha, rank)
    factor = pair.scale / scale
    # A scale that went through a division and back differs in its last bit, and means the same.
    B = pair.B if math.isclose(factor, 1.0, rel_tol=1e-9) else factor * pair.B
    more = rank - pair.rank
    if more:
        return replace(
            pair, A=pad(pair.A, (0, 0, 0, more)), B=pad(B, (0, more)), alpha=alpha, scale=scale
        )
    return replace(pair, B=B, alpha=alpha, scale=scale)


def commonest_alpha(pairs: Mapping[str, Pair], ranks: Mapping[str, int]) -> float:
    """The numerator of most pairs' scales, where every scale is alpha / rank at these ranks.

    With it the fewest B have to change: none, where one alpha was trained without rsLoRA.
    """
    counted = Counter(round(pair.scale * ranks[path], 9) for path, pair in pairs.items())
    return counted.most_common(1)[0][0]
