"""Calls as values of JSON. Pure."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """A call: the function's name, and its arguments as JSON in a text."""

    name: str
    arguments: str


class Nesting:
    """How deep a text is in objects, arrays and strings of JSON."""

    def __init__(self) -> None:
        self._depth, self._inside, self._escaped = 0, False, False

    def end(self, text: str, start: int = 0) -> int | None:
        """Go on by text[start:]; where the value that was begun first ends, None where it does not."""
        for i in range(start, len(text)):
            letter = text[i]
            if self._inside:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._inside = False
            elif letter == '"':
                self._inside = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return i + 1
        return None


def end_of(text: str, start: int) -> int | None:
    """Where the JSON object or array that begins at `start` ends; None where it does not.

    >>> end_of('{"a": "}"} …', 0)
    10
    """
    return Nesting().end(text, start)


def _json(text: str) -> Any:
    """A value of JSON, None where it is none."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None


def arguments_of(text: str) -> str | None:
    """A JSON object as JSON again; None where it is none."""
    value = _json(text)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else None


def call_of(text: str, *, needs_arguments: bool = False) -> ToolCall | None:
    """The call that a JSON object is; None where it is none."""
    return _of(_json(text), needs_arguments=needs_arguments)


def _of(value: Any, *, needs_arguments: bool = False) -> ToolCall | None:
    """A call, from an object with a name and arguments; None where it is none."""
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name")
    keys = [key for key in ("arguments", "parameters") if key in value]
    if not isinstance(name, str) or not name or len(keys) > 1 or (needs_arguments and not keys):
        return None
    arguments = value[keys[0]] if keys else {}
    if isinstance(arguments, str):
        arguments = _json(arguments)
    if not isinstance(arguments, dict):
        return None
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


def calls_of(text: str) -> tuple[ToolCall, ...]:
    """The calls of an array; none where one of them is broken."""
    values = _json(text)
    calls = [_of(value) for value in values] if isinstance(values, list) else []
    return () if None in calls else tuple(call for call in calls if call is not None)
