"""Scores of answers that are JSON objects: are they JSON, and which of their fields are right.

An object is flattened to its leaves, path -> value: `{"a": {"b": [1, 2]}}` has the leaves
(a, b, 0) -> 1 and (a, b, 1) -> 2. An empty object or list is a leaf itself.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Path = tuple[str | int, ...]


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that the whole text is (white space around it allowed), or None.

    Strict: NaN and Infinity, which Python's reader lets through, are not JSON (RFC 8259).
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
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


def json_validity(prediction: str, references: Sequence[str]) -> float:
    """1.0 where the prediction parses as one JSON object; the references do not matter."""
    return float(parse_object(prediction) is not None)


def field_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Right leaves / (the reference's leaves + leaves that only the prediction has), in 0..1.

    So a missing, a wrong and an invented field each cost one. A prediction that is no JSON
    object scores 0; with several references the best one counts.
    """
    predicted = parse_object(prediction)
    if predicted is None:
        return 0.0
    given = leaves(predicted)
    return max(_share_right(given, leaves(parse_object(r))) for r in references)


def _share_right(given: Mapping[Path, Any], wanted: Mapping[Path, Any]) -> float:
    right = sum(path in given and _equal(given[path], value) for path, value in wanted.items())
    return right / len(given.keys() | wanted.keys())


def json_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 where every field is right and none is invented; order and spacing do not matter."""
    return float(field_accuracy(prediction, references) == 1.0)
