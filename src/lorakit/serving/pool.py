"""Which adapter lies in which slots: the least recently used goes, one in use never. Pure.

Adapters are known by their content id, so that a new version under the same name is another one.
"""

from dataclasses import dataclass


@dataclass(eq=False)
class Resident:
    """An adapter in slots [slot, slot + width).

    `users` counts the running sequences of it; `used` grows with every use.
    """

    key: str
    slot: int
    width: int
    users: int = 0
    used: int = 0


class SlotPool:
    """Slots and who is in them.

    Args:
        slots: how many there are.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._by_key: dict[str, Resident] = {}
        self._in: list[Resident | None] = [None] * slots
        self._clock = 0

    def acquire(self, key: str) -> Resident | None:
        """The adapter, in use by one more sequence; None where it is not resident."""
        resident = self._by_key.get(key)
        if resident is not None:
            resident.users += 1
            self._touch(resident)
        return resident

    def release(self, resident: Resident) -> None:
        """One sequence less uses it; it stays until its slots are needed."""
        resident.users -= 1
        self._touch(resident)

    def place(self, key: str, width: int) -> Resident | None:
        """Slots for an adapter, at a multiple of its width, those of idle ones given up for it.

        Free slots are taken before any adapter goes, then those whose latest user is the least
        recent. None while too many are in use.
        """
        best: tuple[int, int] | None = None
        for slot in range(0, self.slots - width + 1, width):
            inside = {r for r in self._in[slot : slot + width] if r is not None}
            if any(r.users for r in inside):
                continue
            latest = max((r.used for r in inside), default=0)
            if best is None or latest < best[0]:
                best = latest, slot
        if best is None:
            return None
        slot = best[1]
        for gone in {r for r in self._in[slot : slot + width] if r is not None}:
            self.drop(gone.key)
        resident = Resident(key, slot, width)
        self._touch(resident)
        self._by_key[key] = resident
        self._in[slot : slot + width] = [resident] * width
        return resident

    def drop(self, key: str) -> None:
        """Free the slots of an idle adapter."""
        resident = self._by_key.pop(key)
        assert not resident.users
        self._in = [None if r is resident else r for r in self._in]

    @property
    def resident(self) -> tuple[str, ...]:
        """Content ids of what is in the slots."""
        return tuple(self._by_key)

    @property
    def users(self) -> int:
        """Running sequences that have an adapter."""
        return sum(r.users for r in self._by_key.values())

    def _touch(self, resident: Resident) -> None:
        self._clock += 1
        resident.used = self._clock
