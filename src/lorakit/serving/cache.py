"""Who owns which cells of the key-value cache, and which prompts are in it already. Pure.

The cells are one stretch, dealt out by the buddy system (Knowlton, CACM 1965): a sequence gets a
power of two of them, at a multiple of their number, for its prompt and the longest answer it may
give, so a sequence that runs never waits for memory and none is ever thrown out. What a sequence
leaves stays until the room is needed, and a later prompt of the same adapter that begins alike takes
its keys and values over. The owner's key is the adapter's content id: another version of the same
name is another key.
"""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

SMALLEST = 16
"""Cells of the smallest piece, and the shortest beginning that is worth taking over."""


class Buddies:
    """Pieces of a stretch of cells; the lowest free one is given first, so that they lie together.

    Args:
        total: cells, a multiple of `largest`.
        largest: piece, a power of two.
    """

    def __init__(self, total: int, largest: int) -> None:
        self.total, self.largest = total, largest
        self._free: dict[int, list[int]] = {largest: list(range(0, total, largest))}

    def take(self, size: int) -> int | None:
        """The start of a free piece of so many cells (a power of two); None where there is none."""
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
        """Free a piece, and join it with its neighbour where that is free too."""
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
        """Cells that nobody owns."""
        return sum(size * len(starts) for size, starts in self._free.items())


@dataclass(eq=False)
class Row:
    """The cells of one sequence.

    Attributes:
        start, size: which.
        key: content id of the adapter that computed them, "" for the base.
        ids: the tokens whose keys and values are there, in order.
        busy: whether a sequence writes to them.
        used: grows with every use, to know the least recent.
    """

    start: int
    size: int
    key: str
    ids: list[int] = field(default_factory=list)
    busy: bool = True
    used: int = 0


@dataclass(frozen=True)
class Lease:
    """Cells for a sequence.

    Attributes:
        row: the cells.
        reused: tokens of the prompt that need not be computed.
        copy_from: the cell from which those are to be copied to `row.start`; None where they are
            there already.
    """

    row: Row
    reused: int
    copy_from: int | None


class Cache:
    """The rows of all sequences, running and past.

    Args:
        cells: how many there are, a multiple of `largest`.
        largest: cells of the longest sequence, a power of two.
    """

    def __init__(self, cells: int, largest: int) -> None:
        self._buddies = Buddies(cells, largest)
        self._rows: dict[str, list[Row]] = {}
        self._clock = itertools.count(1)

    @property
    def cells(self) -> int:
        """How many there are."""
        return self._buddies.total

    @property
    def largest(self) -> int:
        """Cells of the longest sequence."""
        return self._buddies.largest

    @property
    def busy(self) -> int:
        """Cells that running sequences own."""
        return sum(row.size for rows in self._rows.values() for row in rows if row.busy)

    @property
    def rows(self) -> int:
        """Sequences in the cache, past ones included."""
        return sum(map(len, self._rows.values()))

    def lease(self, key: str, prompt: Sequence[int], most: int) -> Lease | None:
        """Cells for a prompt and at most so many new tokens, or None while there is no room.

        At least the prompt's last token is left to be computed, since its logits are needed.

        Args:
            key: content id of the adapter, "" for the base.
            prompt: its token ids.
            most: longest answer.
        """
        size = size_for(len(prompt) + most)
        best, common = None, 0
        for row in self._rows.get(key, ()):
            alike = common_prefix(row.ids, prompt[:-1])
            if alike > common or (alike == common and best is not None and best.busy):
                best, common = row, alike
        if best is None or common < SMALLEST:
            best, common = None, 0
        if best is not None and not best.busy and best.size == size and 2 * common > len(best.ids):
            best.busy, best.used = True, next(self._clock)
            del best.ids[common:]
            return Lease(best, common, None)
        start = self._room(size, spare=best)
        if start is None:
            return None
        row = Row(start, size, key, list(prompt[:common]), used=next(self._clock))
        self._rows.setdefault(key, []).append(row)
        # The source may just have been given away to make this very room: its cells are still what
        # they were, as nothing is written before the copy.
        return Lease(row, common, best.start if best is not None else None)

    def release(self, row: Row, *, keep: bool) -> None:
        """A sequence has ended; its cells stay for later prompts where they are worth it.

        Args:
            row: its cells.
            keep: False where what is in them must not be used again.
        """
        row.busy, row.used = False, next(self._clock)
        if not keep or len(row.ids) < SMALLEST:
            self._drop(row)

    def forget(self, key: str) -> None:
        """Free what idle rows of an adapter hold."""
        for row in list(self._rows.get(key, ())):
            if not row.busy:
                self._drop(row)

    def _room(self, size: int, spare: Row | None) -> int | None:
        """A piece of cells, idle rows given up for it, the least recent first and `spare` last."""
        start = self._buddies.take(size)
        if start is not None:
            return start
        idle = [row for rows in self._rows.values() for row in rows if not row.busy]
        for row in sorted(idle, key=lambda row: (row is spare, row.used)):
            self._drop(row)
            if (start := self._buddies.take(size)) is not None:
                return start
        return None

    def _drop(self, row: Row) -> None:
        rows = self._rows[row.key]
        rows.remove(row)
        if not rows:
            del self._rows[row.key]
        self._buddies.give(row.start, row.size)


def size_for(tokens: int) -> int:
    """The power of two of cells that holds so many tokens."""
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
