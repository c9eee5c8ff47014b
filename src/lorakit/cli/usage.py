"""What typer refuses in a command line -> one error in lorakit's own form, with what to write."""

from collections.abc import Sequence
from typing import Any

import typer

from lorakit.files.wording import command_line

# What typer raises for a command line that it cannot read, by whatever click it stands on.
UsageError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError"
)
# Types of values as their refusals name them.
_KINDS = {
    "valid number": "a number",
    "valid integer": "a whole number",
    "valid boolean": "true or false",
}


def refusal(error: Any, path: Sequence[str], command: Any, arguments: Sequence[str]) -> str | None:
    """One sentence for the user; None where typer shows a page of help instead.

    Args:
        error: what typer raised, a `UsageError`.
        path: the words that name the command.
        command: it, as typer has it.
        arguments: the words after `lorakit`.
    """
    if hasattr(command, "commands"):
        return None
    more = f"`{command_line(*path, '--help')}` explains it"
    flag = getattr(error, "option_name", None)
    if flag is not None:
        if "does not take" in error.message:
            return f"{flag} is a switch and takes no value; {more}"
        return f"{flag} needs a value after it; {more}"
    parameter = getattr(error, "param", None)
    if parameter is None:
        return f"{error.format_message().rstrip('.')}; {more}"
    is_place = parameter.param_type_name == "argument"
    shown = str(parameter.name) if is_place else max(parameter.opts, key=len)
    if not error.message:  # required, and not given
        places = (p for p in command.params if p.param_type_name == "argument")
        line = command_line(*path, *(str(p.name).upper() for p in places))
        line = line if is_place else f"{line} {shown} VALUE"
        return f"{shown.upper() if is_place else shown} is missing: write `{line}`; {more}"
    value = _given(parameter.opts, arguments)
    kind = next((words for told, words in _KINDS.items() if told in error.message), None)
    takes = f"it must be {kind}" if kind else error.message
    return f"{shown}{f' is {value!r}' if value is not None else ''}; {takes}; {more}"


def _given(names: Sequence[str], arguments: Sequence[str]) -> str | None:
    """The value that stands after an option, where one does."""
    for at, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else next(iter(arguments[at + 1 :]), None)
    return None
