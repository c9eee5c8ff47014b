"""Prompts and completion events: the interface between the HTTP server and any engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorakit.errors import LorakitError
from lorakit.serving.sampling import Chosen, Sampling


class StoppingError(LorakitError):
    """The server is about to stop and takes no more requests."""


@dataclass(frozen=True)
class Prompt:
    """A prompt for one completion.

    Attributes:
        ids: token ids, at least one.
        key: content id of the adapter, "" for the base.
        load: reads that adapter into the form it is held in (here `StagedAdapter`); called in the loader's
            thread, when it is not there.
        name: what the client calls the model, for figures.
        most: longest completion, in tokens.
        ends: token ids that end a completion.
        stop: strings that end it.
        sampling: how tokens are chosen.
        choice: index of this completion in its request.
        stop_shown: whether the text holds what ended it, where it was a string or a token that is
            not special.
        specials: ids of special tokens whose text is shown; None for all of them.
        unadapted: tokens at the beginning that the base computes alone, before the adapter acts.
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
    stop_shown: bool = False
    specials: frozenset[int] | None = frozenset()
    unadapted: int = 0


@dataclass(frozen=True)
class CompletionEvent:
    """What one step adds to a completion.

    Attributes:
        choice: index of the completion in its request.
        text: the new text; whole characters.
        tokens: the tokens of the step, with log-probabilities where requested.
        finish: "stop" or "length" at the end, "error" with what went wrong in `text`, "refused"
            likewise where it is the request's own fault, else None.
        reused: tokens of the prompt that were in the cache; known from the first token on.
    """

    choice: int
    text: str
    tokens: tuple[Chosen, ...] = ()
    finish: str | None = None
    reused: int = 0


Deliver = Callable[[list[tuple[Any, CompletionEvent]]], None]
"""Takes each step's events, each with the tag that `submit` got for its request."""


class Observer:
    """Callbacks of the engine, for metrics; this one does nothing."""

    def step(self, seconds: float, tokens: int) -> None:
        """A step is over."""

    def level(self, running: int, waiting: int, positions: int) -> None:
        """Sequences that run and that wait, and cache positions that running ones own."""

    def token(self, name: str, since: float, *, first: bool) -> None:
        """A token of a completion, and the seconds since the one before, or since its request came."""

    def prompt(self, name: str, tokens: int, reused: int) -> None:
        """A prompt has been read."""

    def loaded(self, reading: float, installing: float) -> None:
        """An adapter was read from disk and staged, and copied into its slots: seconds of each."""
