"""Bars on the terminal for as long as a block lasts."""

from types import TracebackType
from typing import Self

from rich.progress import Progress, ProgressColumn

from lorakit.cli.show import console


class Bars:
    """What all watchers are: a context manager with bars; `__call__` of each shows an event.

    Args:
        columns: of each bar.
    """

    def __init__(self, *columns: ProgressColumn) -> None:
        self._progress = Progress(*columns, console=console)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
