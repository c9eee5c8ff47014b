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
from lorakit.serving.cache import SMALLEST, Allocation, Cache, common_prefix
from lorakit.serving.pool import Resident, SlotPool
from lorakit.serving.spec import EngineSpec


class QueueFullError(LorakitError):
    """The queue is full; the client should try again later."""


@dataclass(eq=False)
class Sequence:
    """One completion that is being generated.

    Attributes:
        key: content id of its adapter, "" for the base.
        prompt: token ids.
        most: longest completion, in tokens.
        arrived: when, by the engine's clock, in seconds.
        leader: another completion of the same prompt, which computes the prompt first.
        unadapted: tokens at its beginning that the base computes alone, before its adapter acts.
        tokens: the prompt and what has been generated.
        past: tokens whose keys and values are in the cache.
        allocation, resident: its part of the KV cache and its adapter's slots, while it runs.
    """

    key: str
    prompt: Many[int]
    most: int
    arrived: float = 0.0
    leader: "Sequence | None" = None
    unadapted: int = 0
    tokens: list[int] = field(default_factory=list)
    past: int = 0
    reused: int = 0
    allocation: Allocation | None = None
    resident: Resident | None = None
    over: bool = False

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def decoding(self) -> bool:
        """Whether its prompt has been computed, except for the last token."""
        return self.past >= len(self.tokens) - 1


@dataclass(frozen=True)
class SequenceWork:
    """The next `count` tokens of a sequence; `last`: its logits are needed."""

    sequence: Sequence
    count: int

    @property
    def resident(self) -> Resident | None:
        """The slots of the adapter that acts on these tokens; all of them are before it acts, or none."""
        sequence = self.sequence
        return sequence.resident if sequence.past >= sequence.unadapted else None

    @property
    def last(self) -> bool:
        """Whether the sequence's newest token is among them, so that another one follows."""
        return self.sequence.past + self.count == len(self.sequence.tokens)


@dataclass(frozen=True)
class StepPlan:
    """A step: admitted sequences (whose keys and values may have to be copied), work, adapters to fetch."""

    admitted: tuple[Sequence, ...]
    work: tuple[SequenceWork, ...]
    wanted: tuple[str, ...]


class Scheduler:
    """The sequences that wait and those that run.

    Args:
        spec: limits.
        cache: the KV cache's positions.
        pool: the adapters' slots.
    """

    def __init__(self, spec: EngineSpec, cache: Cache, pool: SlotPool) -> None:
        self.spec, self.cache, self.pool = spec, cache, pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequences: Many[Sequence]) -> None:
        """Append sequences to the queue: all of them or none.

        Raises:
            QueueFullError: more would wait than may.
        """
        if len(self.waiting) + len(sequences) > self.spec.max_queue:
            raise QueueFullError(f"{len(self.waiting)} sequences are waiting already")
        self.waiting.extend(sequences)

    def plan(self, now: float) -> StepPlan:
        """The next step, and the sequences that join it.

        Args:
            now: by the clock of `Sequence.arrived`.
        """
        admitted, wanted = self._admit(now)
        work = [SequenceWork(s, 1) for s in self.running if s.decoding]
        left = self.spec.step_tokens - len(work)
        for sequence in self.running:
            if not sequence.decoding and left > 0:
                whole = sequence.past >= sequence.unadapted
                end = len(sequence.tokens) if whole else sequence.unadapted
                count = min(left, end - sequence.past)
                work.append(SequenceWork(sequence, count))
                left -= count
        return StepPlan(tuple(admitted), tuple(work), tuple(wanted))

    def advance(self, work: SequenceWork) -> None:
        """Record that the tokens of this work are in the KV cache."""
        sequence = work.sequence
        assert sequence.allocation is not None
        ids = sequence.allocation.block.ids
        ids += sequence.tokens[sequence.past : sequence.past + work.count]
        sequence.past += work.count

    def end(self, sequence: Sequence, *, keep: bool = True) -> None:
        """End a sequence, whatever its state: its part of the KV cache and its slots are free at once.

        Args:
            sequence: waiting, running, or ended already (then nothing happens).
            keep: whether later prompts may reuse its keys and values.
        """
        if sequence.over:
            return
        sequence.over = True
        if sequence.allocation is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self.cache.release(sequence.allocation.block, keep=keep)
        if sequence.resident is not None:
            self.pool.release(sequence.resident)

    def _admit(self, now: float) -> tuple[list[Sequence], list[str]]:
        admitted: list[Sequence] = []
        wanted: list[str] = []
        for sequence in list(self.waiting):
            if len(self.running) >= self.spec.max_running:
                break
            leader = sequence.leader
            if leader is not None and not leader.over and not leader.decoding:
                continue
            if self._is_being_read(sequence):
                continue
            if self._start(sequence, wanted):
                self.waiting.remove(sequence)
                self.running.append(sequence)
                admitted.append(sequence)
            elif now - sequence.arrived > self.spec.patience:
                break
        return admitted, wanted

    def _is_being_read(self, sequence: Sequence) -> bool:
        """Whether the base computes just now what it would have to compute for this one, too."""
        if not sequence.unadapted or not self.cache.shares:
            return False
        for other in self.running:
            alone = other.unadapted if other.key else len(other.prompt) - 1
            alike = min(alone, sequence.unadapted)
            if other.past < alike and alike >= 2 * SMALLEST:
                shared = common_prefix(other.tokens[:alike], sequence.prompt[:alike])
                if other.past < shared and shared >= 2 * SMALLEST:
                    return True
        return False

    def _start(self, sequence: Sequence, wanted: list[str]) -> bool:
        resident = None
        if sequence.key:
            resident = self.pool.acquire(sequence.key)
            if resident is None:
                if sequence.key not in wanted:
                    wanted.append(sequence.key)
                return False
        allocation = self.cache.allocate(
            sequence.key, sequence.prompt, sequence.most, sequence.unadapted
        )
        if allocation is None:
            if resident is not None:
                self.pool.release(resident)
            return False
        sequence.allocation, sequence.resident = allocation, resident
        sequence.past = sequence.reused = allocation.reused
        return True
