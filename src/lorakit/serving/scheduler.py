"""What the next step computes: which sequences, how many tokens of each. Pure: no I/O, no clock.

Continuous batching: a sequence joins at any step and leaves when it ends. Every running sequence
that has its whole prompt behind it gets its one next token in every step; what is left of the step's
tokens goes to prompts, in pieces, so that a long prompt delays nobody's next token by more than one
piece. A sequence is admitted once its adapter is in its slots and the cache has room for the longest
answer it may give: what runs never has to stop. One that cannot be admitted yet is overtaken by
those that can, but not for longer than `patience`.
"""

from collections import deque
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from lorakit.errors import LorakitError
from lorakit.serving.cache import Cache, Lease
from lorakit.serving.pool import Resident, SlotPool
from lorakit.serving.spec import EngineSpec


class QueueFullError(LorakitError):
    """There are as many requests waiting as may wait; the client is to come back later."""


@dataclass(eq=False)
class Sequence:
    """One answer in the making.

    Attributes:
        key: content id of its adapter, "" for the base.
        prompt: token ids.
        most: longest answer, in tokens.
        arrived: when, by the engine's clock, in seconds.
        leader: another answer to the same prompt, which computes it first.
        tokens: the prompt and what has been answered.
        past: tokens whose keys and values are in the cache.
        lease, resident: its cells and its adapter's slots, while it runs.
    """

    key: str
    prompt: Many[int]
    most: int
    arrived: float = 0.0
    leader: "Sequence | None" = None
    tokens: list[int] = field(default_factory=list)
    past: int = 0
    reused: int = 0
    lease: Lease | None = None
    resident: Resident | None = None
    over: bool = False

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def answering(self) -> bool:
        """Whether the prompt lies behind it, but for the last token."""
        return self.past >= len(self.tokens) - 1


@dataclass(frozen=True)
class Work:
    """The next `count` tokens of a sequence; `last`: its logits are needed."""

    sequence: Sequence
    count: int

    @property
    def last(self) -> bool:
        """Whether the sequence's newest token is among them, so that another one follows."""
        return self.sequence.past + self.count == len(self.sequence.tokens)


@dataclass(frozen=True)
class Plan:
    """A step: admitted sequences (whose cells may have to be copied), work, adapters to fetch."""

    admitted: tuple[Sequence, ...]
    work: tuple[Work, ...]
    wanted: tuple[str, ...]


class Scheduler:
    """The sequences that wait and those that run.

    Args:
        spec: limits.
        cache: cells.
        pool: slots.
    """

    def __init__(self, spec: EngineSpec, cache: Cache, pool: SlotPool) -> None:
        self.spec, self.cache, self.pool = spec, cache, pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequences: Many[Sequence]) -> None:
        """Let sequences wait for their turn, all or none.

        Raises:
            QueueFullError: more would wait than may.
        """
        if len(self.waiting) + len(sequences) > self.spec.max_queue:
            raise QueueFullError(f"{len(self.waiting)} sequences are waiting already")
        self.waiting.extend(sequences)

    def plan(self, now: float) -> Plan:
        """The next step, and who joins it.

        Args:
            now: by the clock of `Sequence.arrived`.
        """
        admitted, wanted = self._admit(now)
        work = [Work(s, 1) for s in self.running if s.answering]
        left = self.spec.step_tokens - len(work)
        for sequence in self.running:
            if not sequence.answering and left > 0:
                count = min(left, len(sequence.tokens) - sequence.past)
                work.append(Work(sequence, count))
                left -= count
        return Plan(tuple(admitted), tuple(work), tuple(wanted))

    def advance(self, work: Work) -> None:
        """The tokens of a piece of work are in the cache."""
        sequence = work.sequence
        assert sequence.lease is not None
        ids = sequence.lease.row.ids
        ids += sequence.tokens[sequence.past : sequence.past + work.count]
        sequence.past += work.count

    def end(self, sequence: Sequence, *, keep: bool = True) -> None:
        """A sequence is over, whatever its state: its cells and slots are free at once.

        Args:
            sequence: waiting, running, or over already (then nothing happens).
            keep: whether later prompts may take over what it computed.
        """
        if sequence.over:
            return
        sequence.over = True
        if sequence.lease is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self.cache.release(sequence.lease.row, keep=keep)
        if sequence.resident is not None:
            self.pool.release(sequence.resident)

    def _admit(self, now: float) -> tuple[list[Sequence], list[str]]:
        admitted: list[Sequence] = []
        wanted: list[str] = []
        for sequence in list(self.waiting):
            if len(self.running) >= self.spec.max_running:
                break
            leader = sequence.leader
            if leader is not None and not leader.over and not leader.answering:
                continue
            if self._start(sequence, wanted):
                self.waiting.remove(sequence)
                self.running.append(sequence)
                admitted.append(sequence)
            elif now - sequence.arrived > self.spec.patience:
                break
        return admitted, wanted

    def _start(self, sequence: Sequence, wanted: list[str]) -> bool:
        resident = None
        if sequence.key:
            resident = self.pool.acquire(sequence.key)
            if resident is None:
                if sequence.key not in wanted:
                    wanted.append(sequence.key)
                return False
        lease = self.cache.lease(sequence.key, sequence.prompt, sequence.most)
        if lease is None:
            if resident is not None:
                self.pool.release(resident)
            return False
        sequence.lease, sequence.resident = lease, resident
        sequence.past = sequence.reused = lease.reused
        return True
