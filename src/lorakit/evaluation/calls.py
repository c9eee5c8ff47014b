"""Scores of answers that call tools: calls are compared as values, not as text.

An answer with calls is one JSON object, `{"content"?: text, "tool_calls": [{"name", "arguments"}, …]}`,
whatever marks and order of keys the model wrote (`as_text`). The calls of one answer are a bag: which
comes first does not matter, how often each comes does.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.evaluation.structured import parse_object, same

Calls = Sequence[Mapping[str, Any]]


def as_text(content: str, calls: Calls) -> str:
    """An answer as the text that is scored: its content alone, or the object with its calls.

    Args:
        content: what is said beside the calls, '' for nothing.
        calls: "name" and "arguments" (an object) of each.

    >>> as_text("", [{"name": "f", "arguments": {"b": 1, "a": 2}}])
    '{"tool_calls": [{"arguments": {"a": 2, "b": 1}, "name": "f"}]}'
    """
    if not calls:
        return content
    listed = sorted(
        ({"name": call["name"], "arguments": call["arguments"]} for call in calls),
        key=lambda call: (call["name"], _written(call)),
    )
    return _written(
        {"content": content, "tool_calls": listed} if content else {"tool_calls": listed}
    )


def calls_in(text: str) -> list[dict[str, Any]]:
    """The calls of an answer in that form; none of any other text."""
    value = parse_object(text)
    if value is None or not set(value) <= {"content", "tool_calls"}:
        return []
    calls = value.get("tool_calls")
    if not isinstance(calls, list) or not all(_is_call(call) for call in calls):
        return []
    return calls


def call_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 where the calls are those of a reference, name and arguments as JSON; else 0.0.

    Where the reference calls nothing, an answer is right if it calls nothing.
    """
    given = calls_in(prediction)
    return float(any(_same_bag(given, calls_in(reference)) for reference in references))


def call_names(prediction: str, references: Sequence[str]) -> float:
    """1.0 where the functions called are those of a reference, each as often; else 0.0."""
    given = Counter(call["name"] for call in calls_in(prediction))
    return float(any(given == Counter(c["name"] for c in calls_in(r)) for r in references))


def _is_call(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"name", "arguments"}
        and isinstance(value["name"], str)
        and isinstance(value["arguments"], dict)
    )


def _same_bag(given: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    if len(given) != len(wanted):
        return False
    left = list(wanted)
    for call in given:
        found = next((i for i, other in enumerate(left) if same(call, other)), None)
        if found is None:
            return False
        del left[found]
    return True


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
