"""What answers requests, as the HTTP server sees it: this process's engine, or another program."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lorakit.serving.answers import Prompt


class Runtime(Protocol):
    """Prompts in, completion events out; `lorakit.serving.engine.Engine` is one, `VllmEngine` another."""

    @property
    def load(self) -> tuple[int, int]:
        """Answers that are waiting or being written, and how many there may be."""

    @property
    def alive(self) -> bool:
        """Whether it can answer."""

    @property
    def failure(self) -> str | None:
        """Why the server has to end; None while there is no such reason."""

    @property
    def residents(self) -> int:
        """Adapters that are ready to be computed."""

    def start(self) -> None:
        """Begin to answer."""

    def submit(self, prompts: Sequence[Prompt], tag: Any) -> Callable[[], None]:
        """Queue prompts; their events are delivered with `tag`. Called in the event loop.

        Returns:
            A function that ends them all.

        Raises:
            QueueFullError: too many are waiting; nothing was taken.
            StoppingError: no more are taken.
        """

    def refuse(self) -> None:
        """Take no more requests; those taken go on."""

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, and end."""
