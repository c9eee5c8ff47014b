"""Progress bars on the terminal, inside a with block."""

from types import TracebackType
from typing import Self

from rich.progress import Progress, ProgressColumn

from lorakit.cli.show import console, errors


class Bars:
    """The base of all watchers: a context manager with bars. Their `__call__` shows an event.

    Args:
        columns: of each bar.
        on_errors: on standard error, and gone at the end; nothing where that is no terminal.
    """

    def __init__(self, *columns: ProgressColumn, on_errors: bool = False) -> None:
        self._progress = Progress(
            *columns,
            console=errors if on_errors else console,
            transient=on_errors,
            disable=on_errors and not errors.is_terminal,
        )

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
