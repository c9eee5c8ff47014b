"""Scores of answers that are JSON objects or arrays: are they JSON, and which of their fields are right.

A value is flattened to its leaves, path -> value: `{"a": {"b": [1, 2]}}` has the leaves
(a, b, 0) -> 1 and (a, b, 1) -> 2. An empty object or list is a leaf itself.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Path = tuple[str | int, ...]


def parse_json(text: str) -> dict[str, Any] | list[Any] | None:
    """The JSON object or array that the whole text is (white space around it allowed), or None.

    Strict: NaN and Infinity, which Python's reader lets through, are not JSON (RFC 8259).
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def parse_object(text: str) -> dict[str, Any] | None:
    """As `parse_json`; None for an array."""
    value = parse_json(text)
    return value if isinstance(value, dict) else None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def leaves(value: Any) -> dict[Path, Any]:
    """The leaves of a JSON value by path, in the value's order.

    >>> leaves({"a": {"b": [1, 2]}, "c": {}})
    {('a', 'b', 0): 1, ('a', 'b', 1): 2, ('c',): {}}
    """
    result: dict[Path, Any] = {}
    # A stack and not a recursion: what a model wrote may be nested as deep as the reader allows.
    waiting: list[tuple[Path, Any]] = [((), value)]
    while waiting:
        path, part = waiting.pop()
        if isinstance(part, dict) and part:
            waiting.extend(((*path, key), v) for key, v in reversed(part.items()))
        elif isinstance(part, list) and part:
            waiting.extend(((*path, i), v) for i, v in reversed(list(enumerate(part))))
        else:
            result[path] = part
    return result


def _equal(a: Any, b: Any) -> bool:
    # In Python True == 1, in JSON they differ; 1 and 1.0 are one JSON number.
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same; the order of keys does not matter.

    >>> same({"a": 1, "b": [True]}, {"b": [True], "a": 1.0}), same(True, 1)
    (True, False)
    """
    first, second = leaves(a), leaves(b)
    return first.keys() == second.keys() and all(_equal(v, second[k]) for k, v in first.items())


def json_validity(prediction: str, references: Sequence[str]) -> float:
    """1.0 where the prediction parses as JSON of a reference's kind, an object or an array; else 0.0."""
    value = parse_json(prediction)
    wanted = {type(parse_json(reference)) for reference in references} - {type(None)}
    return float(value is not None and (type(value) in wanted or not wanted))


def field_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Right leaves / (the reference's leaves + leaves that only the prediction has), in 0..1.

    So a missing, a wrong and an invented field each cost one. A prediction that is neither a JSON
    object nor an array scores 0; with several references the best one counts.
    """
    predicted = parse_json(prediction)
    if predicted is None:
        return 0.0
    given = leaves(predicted)
    return max(_share_right(given, leaves(parse_json(r))) for r in references)


def _share_right(given: Mapping[Path, Any], wanted: Mapping[Path, Any]) -> float:
    right = sum(path in given and _equal(given[path], value) for path, value in wanted.items())
    return right / len(given.keys() | wanted.keys())


def json_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 where every field is right and none is invented; order and spacing do not matter."""
    return float(field_accuracy(prediction, references) == 1.0)
