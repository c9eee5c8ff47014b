"""In which form a chat template takes messages, found by rendering a few small conversations.

Templates differ: content as text or as parts, a tool call's arguments as an object or as JSON text,
the thinking under one of three names.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.data.shapes import Message

THINKING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""The names under which rows and templates keep what a model thought before its answer."""

PROBE = "lorakit7probe"
"""A word that no row holds."""

Render = Callable[[Sequence[Message], Sequence[Mapping[str, Any]] | None], str | None]
"""Messages, as they are, and tools -> text; None where the template refuses them."""


@dataclass(frozen=True)
class Forms:
    """In which form a template takes messages.

    parts: roles whose content it reads as ``[{"type": "text", "text": …}]`` alone.
    text_arguments: it wants a tool call's arguments as JSON text. thinking: the field it reads.
    """

    parts: frozenset[str]
    text_arguments: bool
    thinking: str | None


def find_forms(render: Render, source: str) -> Forms:
    """The forms that the template with this source takes."""
    parts: frozenset[str] = frozenset()
    for role in ("user", "assistant", "system", "tool"):
        tools = PROBE_TOOLS if role == "tool" else None
        as_text, as_parts = (
            _holds(render([in_parts(m, form) for m in _conversation(role)], tools))
            for form in (parts - {role}, parts | {role})
        )
        if as_parts and not as_text:
            parts |= {role}
    return Forms(parts, _text_arguments(render, parts), _thinking(render, source, parts))


def _holds(text: str | None) -> bool:
    return text is not None and PROBE in text


def _text_arguments(render: Render, parts: frozenset[str]) -> bool:
    as_object, as_text = (
        render([in_parts(m, parts) for m in calling(arguments)], PROBE_TOOLS)
        for arguments in ({"town": PROBE}, f'{{"town": "{PROBE}"}}')
    )
    # Without the filter tojson, a template writes an object as Python does, in single quotes.
    wrong = as_object is None or f"'{PROBE}'" in as_object
    return wrong and as_text is not None and f'"town": "{PROBE}"' in as_text


def _thinking(render: Render, source: str, parts: frozenset[str]) -> str | None:
    for name in THINKING_FIELDS:
        answer = {"role": "assistant", "content": "answer", name: PROBE}
        messages = [in_parts(m, parts) for m in ({"role": "user", "content": "question"}, answer)]
        if name in source and _holds(render(messages, None)):
            return name
    return None


def thinking_of(message: Message) -> str:
    """What the assistant thought before this answer, '' where the message holds none."""
    return next((str(message[k]) for k in THINKING_FIELDS if message.get(k)), "")


def in_parts(message: Message, roles: frozenset[str]) -> dict[str, Any]:
    """The message, its content as a list of one part where the template reads this role so."""
    content = message.get("content")
    if message["role"] in roles and isinstance(content, str):
        return {**message, "content": [{"type": "text", "text": content}]}
    return dict(message)


def with_text_arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tool call, its arguments as JSON text."""
    function = call["function"]
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def calling(arguments: Any) -> list[Message]:
    """A question, and a tool call with these arguments."""
    function = {"name": "find", "arguments": arguments}
    call = {"id": "abcdef123", "type": "function", "function": function}
    return [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]


def _conversation(role: str) -> list[Message]:
    """A short conversation in which only the message of this role holds the probe."""
    if role == "tool":
        result = {"role": "tool", "name": "find", "tool_call_id": "abcdef123", "content": PROBE}
        return [*calling({"town": "Oslo"}), result]
    order = {"system": ("system", "user"), "user": ("user",), "assistant": ("user", "assistant")}
    return [{"role": r, "content": PROBE if r == role else "question"} for r in order[role]]


PROBE_TOOLS: Sequence[Mapping[str, Any]] = (
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Find a town.",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string", "description": "Its name."}},
                "required": ["town"],
            },
        },
    },
)
