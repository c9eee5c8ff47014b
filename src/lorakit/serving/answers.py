"""What an engine is asked for, what it says, and to whom: the same whatever computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorakit.errors import LorakitError
from lorakit.serving.sampling import Chosen, Sampling


class StoppingError(LorakitError):
    """The server is about to stop and takes no more requests."""


@dataclass(frozen=True)
class Prompt:
    """What one answer is asked for.

    Attributes:
        ids: token ids, at least one.
        key: content id of the adapter, "" for the base.
        load: reads that adapter into the form it is held in (here `Staged`); called in the loader's
            thread, when it is not there.
        name: what the client calls the model, for figures.
        most: longest answer, in tokens.
        ends: token ids that end an answer.
        stop: strings that end it.
        sampling: how tokens are chosen.
        choice: which of the request's answers this is.
    """

    ids: Sequence[int]
    key: str
    load: Callable[[], Any] | None
    name: str
    most: int
    ends: frozenset[int]
    stop: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    choice: int = 0


@dataclass(frozen=True)
class Event:
    """What became of an answer in one step.

    Attributes:
        choice: which answer of the request.
        text: what it adds to the answer's text; whole characters.
        tokens: the tokens of the step, with log-probabilities where asked for.
        finish: "stop" or "length" at the end, "error" with what went wrong in `text`, else None.
        reused: tokens of the prompt that were in the cache; known from the first token on.
    """

    choice: int
    text: str
    tokens: tuple[Chosen, ...] = ()
    finish: str | None = None
    reused: int = 0


Deliver = Callable[[list[tuple[Any, Event]]], None]
"""Takes each step's events with what `submit` was given to know their request by."""


class Observer:
    """What the engine tells of itself; does nothing, for those who do not want to know."""

    def step(self, seconds: float, tokens: int) -> None:
        """A step is over."""

    def level(self, running: int, waiting: int, cells: int) -> None:
        """Answers being computed and waiting, and cells that running ones own."""

    def token(self, name: str, since: float, *, first: bool) -> None:
        """A token of an answer, and the seconds since the one before, or since its request came."""

    def prompt(self, name: str, tokens: int, reused: int) -> None:
        """A prompt has been read."""

    def loaded(self, reading: float, installing: float) -> None:
        """An adapter was read from disk and staged, and copied into its slots: seconds of each."""
