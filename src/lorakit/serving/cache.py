"""Which sequence owns which positions of the KV cache, and which prompts it holds already. Pure.

The positions are one range, allocated by the buddy system (Knowlton, CACM 1965): a sequence gets a
power of two of them, aligned to their number, for its prompt and the longest completion it may have.
So a running sequence never waits for memory and is never evicted. When it ends, its keys and values
stay until the memory is needed, and a later prompt of the same adapter that begins with the same
tokens reuses them. The owner's key is the adapter's content id: another version of the same name is
another key. Tokens that the base computed alone, all of the base's own and those before the place from
which on an adapter acts, are anybody's who would have them computed so. Where a model keeps states of its own in place of cells (execution/own_caches.py), the positions
are still what is counted, the number of blocks is limited too, and of a state no token can be taken
back: it is reused by a prompt that begins with all of its tokens, or by none.
"""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Reuse = Literal["beginnings", "whole", "none"]
"""Of a past sequence a later prompt can reuse its first tokens, or all of them and no fewer, or none."""
NEVER = 1 << 60
"""Tokens that the base computes alone where no adapter acts at all."""
SMALLEST = 16
"""Positions of the smallest block, and the shortest common prefix that is worth reusing."""


class Buddies:
    """Aligned blocks of a range of positions; the lowest free one is taken first.

    Args:
        total: number of positions, a multiple of `largest`.
        largest: positions of the largest block, a power of two.
    """

    def __init__(self, total: int, largest: int) -> None:
        self.total, self.largest = total, largest
        self._free: dict[int, list[int]] = {largest: list(range(0, total, largest))}

    def take(self, size: int) -> int | None:
        """The start of a free block of `size` positions (a power of two); None where there is none."""
        have = size
        while not self._free.get(have):
            have *= 2
            if have > self.largest:
                return None
        start = heapq.heappop(self._free[have])
        while have > size:
            have //= 2
            heapq.heappush(self._free.setdefault(have, []), start + have)
        return start

    def give(self, start: int, size: int) -> None:
        """Free a block, and join it with its neighbour where that is free too."""
        while size < self.largest:
            buddy = start ^ size
            free = self._free.setdefault(size, [])
            if buddy not in free:
                break
            free.remove(buddy)
            heapq.heapify(free)
            start, size = min(start, buddy), size * 2
        heapq.heappush(self._free.setdefault(size, []), start)

    @property
    def free(self) -> int:
        """Number of free positions."""
        return sum(size * len(starts) for size, starts in self._free.items())


@dataclass(eq=False)
class CacheBlock:
    """The positions of one sequence.

    Attributes:
        start, size: the first position, and their number.
        key: content id of the adapter that computed them, "" for the base.
        ids: the tokens whose keys and values are there, in order.
        busy: whether a sequence writes to them.
        used: grows with every use, to know the least recent.
        unadapted: tokens at the beginning that the base computed alone, whatever the key.
    """

    start: int
    size: int
    key: str
    ids: list[int] = field(default_factory=list)
    busy: bool = True
    used: int = 0
    unadapted: int = 0


@dataclass(frozen=True)
class Allocation:
    """What a sequence gets of the KV cache.

    Attributes:
        block: its positions.
        reused: tokens of the prompt that need not be computed.
        copy_from: the position from which those must be copied to `block.start`; None where they
            are there already.
    """

    block: CacheBlock
    reused: int
    copy_from: int | None


class Cache:
    """The blocks of all sequences, running and past.

    Args:
        positions: how many there are, a multiple of `largest`.
        largest: positions of the longest sequence, a power of two.
        reuse: what of a block can be reused.
        most: blocks there may be; None for as many as there is room for.
    """

    def __init__(
        self, positions: int, largest: int, *, reuse: Reuse = "beginnings", most: int | None = None
    ) -> None:
        self._buddies, self._reuse, self._most = Buddies(positions, largest), reuse, most
        self._blocks: dict[str, list[CacheBlock]] = {}
        self._clock = itertools.count(1)

    @property
    def positions(self) -> int:
        """Number of positions."""
        return self._buddies.total

    @property
    def largest(self) -> int:
        """Positions of the longest sequence."""
        return self._buddies.largest

    @property
    def shares(self) -> bool:
        """Whether the first tokens of a sequence can be reused."""
        return self._reuse == "beginnings"

    @property
    def busy(self) -> int:
        """Positions that running sequences own."""
        return sum(block.size for blocks in self._blocks.values() for block in blocks if block.busy)

    @property
    def blocks(self) -> int:
        """Sequences in the cache, past ones included."""
        return sum(map(len, self._blocks.values()))

    @property
    def starts(self) -> set[int]:
        """The first position of every block."""
        return {block.start for blocks in self._blocks.values() for block in blocks}

    def allocate(
        self, key: str, prompt: Sequence[int], most: int, unadapted: int = 0
    ) -> Allocation | None:
        """Positions for a prompt and at most `most` new tokens, or None while there is no room.

        At least the prompt's last token remains to be computed, because its logits are needed.

        Args:
            key: content id of the adapter, "" for the base.
            prompt: its token ids.
            most: tokens of the longest completion.
            unadapted: tokens at the beginning that the base computes alone, where there is an adapter.
        """
        size = size_for(len(prompt) + most)
        best, common = None, 0
        alone = unadapted if key else NEVER
        for block in self._alike(key, alone):
            shared = common_prefix(block.ids, prompt[:-1])
            if (block.key, block.unadapted) != (key, alone):
                shared = min(shared, block.unadapted, alone)
            if self._reuse == "none" or (self._reuse == "whole" and shared < len(block.ids)):
                continue
            if shared > common or (shared == common and best is not None and best.busy):
                best, common = block, shared
        if best is None or common < SMALLEST:
            best, common = None, 0
        if best is not None and not best.busy and best.size == size and 2 * common > len(best.ids):
            self._blocks[best.key].remove(best)
            best.key, best.unadapted = key, alone
            self._blocks.setdefault(key, []).append(best)
            best.busy, best.used = True, next(self._clock)
            del best.ids[common:]
            return Allocation(best, common, None)
        start = self._room(size, spare=best)
        if start is None:
            return None
        clock, ids = next(self._clock), list(prompt[:common])
        block = CacheBlock(start, size, key, ids, used=clock, unadapted=alone)
        self._blocks.setdefault(key, []).append(block)
        # The source may just have been freed to make this room: its keys and values are still
        # there, because nothing is written before the copy.
        return Allocation(block, common, best.start if best is not None else None)

    def _alike(self, key: str, alone: int) -> list[CacheBlock]:
        """Blocks whose beginning may be one of this key's: its own, and where it has tokens that the base
        computes alone, all others with such."""
        if not alone:
            return list(self._blocks.get(key, ()))
        every = (block for blocks in self._blocks.values() for block in blocks)
        return [block for block in every if block.key == key or block.unadapted]

    def release(self, block: CacheBlock, *, keep: bool) -> None:
        """A sequence has ended; its block stays for later prompts where it is worth reusing.

        Args:
            block: its positions.
            keep: False where its keys and values must not be used again.
        """
        block.busy, block.used = False, next(self._clock)
        if not keep or len(block.ids) < SMALLEST or self._reuse == "none":
            self._drop(block)

    def forget(self, key: str) -> None:
        """Free the idle blocks of an adapter."""
        for block in list(self._blocks.get(key, ())):
            if not block.busy:
                self._drop(block)

    def _room(self, size: int, spare: CacheBlock | None) -> int | None:
        """A free block; idle blocks are dropped for it, the least recent first, `spare` last."""
        start = self._take(size)
        if start is not None:
            return start
        idle = [block for blocks in self._blocks.values() for block in blocks if not block.busy]
        for block in sorted(idle, key=lambda block: (block is spare, block.used)):
            self._drop(block)
            if (start := self._take(size)) is not None:
                return start
        return None

    def _take(self, size: int) -> int | None:
        return None if self.blocks == self._most else self._buddies.take(size)

    def _drop(self, block: CacheBlock) -> None:
        blocks = self._blocks[block.key]
        blocks.remove(block)
        if not blocks:
            del self._blocks[block.key]
        self._buddies.give(block.start, block.size)


def size_for(tokens: int) -> int:
    """The positions of the block that holds this number of tokens: a power of two."""
    return max(SMALLEST, 1 << (tokens - 1).bit_length())


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    low, high = 0, min(len(one), len(other))
    if not high or one[0] != other[0]:
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
