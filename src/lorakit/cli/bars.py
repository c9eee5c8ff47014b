"""Progress bars on the terminal, inside a with block."""

from types import TracebackType
from typing import Self

from rich.progress import Progress, ProgressColumn

from lorakit.cli.show import console


class Bars:
    """The base of all watchers: a context manager with bars. Their `__call__` shows an event.

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
