"""Lists of messages, as data sets write them -> messages in the form of OpenAI's chat.

Read are OpenAI's own form with its older fields (`function_call`, the role `function`, `functions`),
ShareGPT's (`from` and `value`, with `function_call` and `observation` as LLaMA-Factory writes tools)
and what lies between: other names of the roles, tool calls without `function`, arguments as JSON text.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lorakit.data.calls import json_list, kind_of_value, older_call, read_call, spoken_call
from lorakit.data.columns import CONTENT_KEYS, ROLE_KEYS, given
from lorakit.data.mapping import write_value
from lorakit.data.row import Row
from lorakit.errors import DataError, did_you_mean

Message = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# Other names of the roles -> OpenAI's. "call" is an assistant message that only calls tools.
_ALIASES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(
        ("gpt", "chatgpt", "bot", "chatbot", "model", "ai", "bing", "bard"), "assistant"
    ),
    **dict.fromkeys(("observation", "tool_response", "tool_result", "ipython"), "tool"),
    **dict.fromkeys(("function_response", "function_result", "tool_results"), "tool"),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls", "function_calls"), "call"),
}


def read_messages(row: Row, value: Any, name: str) -> list[Message]:
    """The messages of a column, clean.

    value: a list of messages or one message, or JSON text of it. name: the column, for errors.

    Raises:
        DataError: a message without a known role or without content; a part that is no text.
    """
    messages = json_list(row, name, value)
    return [_message(m, f"{row.origin}: message {i}", row) for i, m in enumerate(messages, 1)]


def read_answers(row: Row, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages, of which at least one is an answer.

    Raises:
        DataError: none has the role assistant.
    """
    if not any(m.get("role") == "assistant" for m in messages):
        raise DataError(
            f"{row.origin}: no message has the role 'assistant', so there is nothing to learn"
        )
    return tuple(messages)


def other_roles(messages: Iterable[Any]) -> list[str]:
    """How roles that are not OpenAI's are read: "human as user", in their order.

    >>> other_roles([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}])
    ['human as user', 'gpt as assistant']
    """
    said: dict[str, None] = {}
    for message in messages:
        if isinstance(message, Mapping):
            role = next((message[k] for k in ROLE_KEYS if message.get(k) is not None), None)
            meant = _role(role)
            if meant is not None and meant != role:
                meant = "assistant with a tool call" if meant == "call" else meant
                said[f"{role} as {meant}"] = None
    return list(said)


def _role(role: Any) -> str | None:
    """OpenAI's name of a role, "call" for a message that is a tool call, None where unknown."""
    if not isinstance(role, str):
        return None
    if role in ROLES:
        return "tool" if role == "function" else role
    bare = role.strip().lower().replace("-", "_").replace(" ", "_")
    return bare if bare in ROLES and bare != "function" else _ALIASES.get(bare)


def _message(message: Message, where: str, row: Row) -> Message:
    # A null is what OpenAI and Arrow write for an absent field; templates would print it as "None".
    clean = {k: v for k, v in message.items() if v is not None}
    key = next((k for k in ROLE_KEYS if k in clean), None)
    named = clean.pop(key) if key else None
    role = _role(named)
    if role is None:
        if key is None:
            keys = f" (its keys: {', '.join(map(repr, clean))})" if clean else ""
            raise DataError(
                f'{where} has no role{keys}; a message is written {{"role": "user", "content": "…"}}, '
                f"with a role of {', '.join(ROLES[:-1])}"
            )
        known = did_you_mean(str(named), (*ROLES, *_ALIASES))
        raise DataError(f"{where} has the role {named!r}; {known}")
    clean = {"role": role, **clean}
    _content(clean, message, where)
    if named in ("function", "function_call", "tool_call") or role == "call":
        clean = spoken_call(clean, named, where)
    role = clean["role"]
    older_call(clean, where, row)
    if given(clean.get("tool_calls")):
        calls = clean["tool_calls"]
        if isinstance(calls, str):
            calls = json_list(row, "tool_calls", calls)
        if not isinstance(calls, list | tuple):
            raise DataError(f"{where}: tool_calls must be a list; it is {kind_of_value(calls)}")
        clean["tool_calls"] = [read_call(c, where, row) for c in calls]
    else:
        clean.pop("tool_calls", None)
    if clean.get("content") is None:
        if role not in ("assistant", "tool"):
            raise DataError(
                f"{where} ({role}) has no content; its keys: {', '.join(map(repr, message))}"
            )
        clean["content"] = ""
    if clean.pop("train", None) is False and role == "assistant":
        clean.setdefault("weight", 0)
    return clean


def _content(clean: dict[str, Any], message: Message, where: str) -> None:
    """Bring what is said under "content", as text."""
    names = [k for k in CONTENT_KEYS if k in clean]
    while len(names) > 1 and clean[names[-1]] == clean[names[0]]:
        del clean[names.pop()]
    if not names:
        return
    if len(names) > 1:
        raise DataError(f"{where} has {' and '.join(map(repr, names))}; give one of them")
    value = clean.pop(names[0])
    if isinstance(value, Mapping) and "type" in value and clean["role"] != "tool":
        value = [value]  # one part, without its list
    # What a tool gives back may be a list of anything, which is written as JSON.
    parts = any(isinstance(p, Mapping) and "type" in p for p in value) if _is_list(value) else False
    if parts or (_is_list(value) and clean["role"] != "tool"):
        value = "".join(_part(p, where) for p in value)
    if not isinstance(value, str):
        value = write_value(value, f"{where}: content")
    clean["content"] = value


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _part(part: Any, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") in ("text", "input_text", "output_text"):
        texts = [part[k] for k in ("text", "value", "content") if isinstance(part.get(k), str)]
        if len(texts) == 1:
            return str(texts[0])
    held = {k: v for k, v in part.items() if v is not None} if isinstance(part, Mapping) else {}
    if set(held) == {"text"} and isinstance(held["text"], str):
        return held["text"]  # as Amazon Bedrock writes it
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind == "text":
        raise DataError(f"{where} has a content part of type 'text' without a text")
    raise DataError(f"{where} has a content part of type {kind!r}; only text can be learnt from")
