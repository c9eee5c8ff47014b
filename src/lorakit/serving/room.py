"""How many sequences the memory for the cache holds, in cells of ours or in states of the model's own. Pure."""

from dataclasses import dataclass

from lorakit.errors import ConfigError
from lorakit.execution.own_caches import StateBytes
from lorakit.serving.cache import Cache, Reuse
from lorakit.serving.spec import EngineSpec

_IDLE = 2
"""Sequences kept, running and past, for each that may run, where states cost memory by the sequence."""


@dataclass(frozen=True)
class Room:
    """Room for sequences.

    Attributes:
        positions: tokens, a multiple of the longest sequence's.
        sequences: how many there may be, running and past; None for as many as there is room for.
        reuse: what of a past sequence a later prompt can reuse.
    """

    positions: int
    sequences: int | None = None
    reuse: Reuse = "beginnings"

    def cache(self, largest: int) -> Cache:
        """Who owns it, nobody yet.

        Args:
            largest: positions of the longest sequence.
        """
        return Cache(self.positions, largest, reuse=self.reuse, most=self.sequences)


def room_in_cells(spec: EngineSpec, cell: int, largest: int) -> Room:
    """All the memory for the cache, as cells.

    Args:
        spec: limits.
        cell: bytes of one.
        largest: cells of the longest sequence.

    Raises:
        ConfigError: it holds less than one sequence.
    """
    cells = int(spec.cache_gb * 1e9 / cell) // largest * largest
    if not cells:
        raise _too_small(spec, int(spec.cache_gb * 1e9 / cell), cell * largest, largest)
    return Room(cells)


def room_of_states(spec: EngineSpec, state: StateBytes, largest: int, reuse: Reuse) -> Room:
    """Room for states of sequences: fixed + token·n bytes for a sequence of n tokens.

    All states together, each as long as its block, never need more than the memory for the cache:
    sequences·fixed + positions·token is at most that.

    Args:
        spec: limits.
        state: bytes of a sequence.
        largest: tokens of the longest.
        reuse: what of a past sequence a later prompt can reuse.

    Raises:
        ConfigError: it holds less than one sequence.
    """
    memory = int(spec.cache_gb * 1e9)
    whole = state.fixed + state.token * largest
    if whole > memory:
        tokens = max(memory - state.fixed, 0) // max(state.token, 1)
        raise _too_small(spec, tokens, whole, largest)
    sequences = _IDLE * spec.max_running
    if state.fixed:
        # Half of the memory for what every sequence needs, unless the longest one needs more.
        most = max(memory // 2 // state.fixed, 1)
        most = min(most, (memory - state.token * largest) // state.fixed)
        sequences = min(sequences, most)
    positions = sequences * largest
    if state.token:
        positions = min(positions, (memory - sequences * state.fixed) // state.token)
    return Room(positions // largest * largest, sequences, reuse)


def _too_small(spec: EngineSpec, tokens: int, needed: int, largest: int) -> ConfigError:
    return ConfigError(
        f"cache_gb {spec.cache_gb:g} holds {tokens:,} tokens, and one sequence may have "
        f"{largest:,}: give at least {needed / 1e9:.2f}, or lower --max-prompt and --max-output"
    )
