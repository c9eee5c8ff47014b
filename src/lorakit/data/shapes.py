"""Rows -> examples: which columns hold the prompt, the answer, the conversation or the text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from lorakit.data.mapping import Mapper, write_value
from lorakit.data.records import Row
from lorakit.data.spec import DataSpec
from lorakit.errors import DataError, did_you_mean

Message = Mapping[str, Any]
Kind = Literal["mapped", "messages", "prompt", "instruction", "text"]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True)
class Example:
    """One training example, before any template. Exactly one of prompt, messages, text is given.

    prompt, completion: a prompt and its answer (completion is None where there is only a prompt).
    messages: a conversation in the form of OpenAI's chat: {"role", "content", "tool_calls"?, …}.
    tools: JSON schemas of the functions it may call. text: plain text, all of it supervised.
    origin: "file:line".
    """

    origin: str
    prompt: str | None = None
    completion: str | None = None
    messages: tuple[Message, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None

    @property
    def question(self) -> str:
        """The question, for a person to read: the prompt, or the last message before the answer."""
        if self.messages is None:
            return self.prompt if self.prompt is not None else ""
        before = [m for m in self.messages[: self.answer_at] if m["role"] != "system"]
        return str(before[-1].get("content") or "") if before else ""

    @property
    def answer(self) -> str | None:
        """The answer to compare with: the completion, or the last assistant message's content.

        A message that only calls tools answers with its calls as JSON. None for plain text.
        """
        if self.messages is None:
            return self.completion
        if self.answer_at == len(self.messages):
            return None
        last = self.messages[self.answer_at]
        if last.get("content"):
            return str(last["content"])
        return write_value([c["function"] for c in last.get("tool_calls", ())], self.origin)

    @property
    def answer_at(self) -> int:
        """Index of the last assistant message; the number of messages where there is none."""
        messages = self.messages or ()
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        return turns[-1] if turns else len(messages)

    def canonical(self) -> bytes:
        """The content, without the origin, as bytes to hash."""
        parts = [self.prompt, self.completion, self.messages, self.tools, self.text]
        return json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str).encode()


@dataclass(frozen=True)
class Shape:
    """How rows of one file are read. `description` is one sentence for the user."""

    kind: Kind
    description: str
    prompt: Mapper | None = None
    completion: Mapper | None = None

    def example(self, row: Row) -> Example:
        """The row as an example.

        Raises:
            DataError: a column is missing, null, empty or not what it should be.
        """
        if self.kind == "mapped":
            assert self.prompt is not None
            assert self.completion is not None
            prompt, answer = self.prompt.fill(row), self.completion.fill(row)
            return Example(
                row.origin, prompt=prompt, completion=_not_empty(answer, row, "the completion")
            )
        if self.kind == "messages":
            return Example(row.origin, messages=_messages(row), tools=_tools(row))
        if self.kind == "prompt":
            asked, answered = _column(row, "prompt"), _column(row, "completion")
            if isinstance(asked, list) and isinstance(answered, list):
                both = replace(row, fields={"messages": [*asked, *answered]})
                return Example(row.origin, messages=_messages(both), tools=_tools(row))
            return Example(
                row.origin, prompt=_text(row, "prompt"), completion=_full(row, "completion")
            )
        if self.kind == "instruction":
            more = _text(row, "input") if row.fields.get("input") else ""
            prompt = _full(row, "instruction") + (f"\n\n{more}" if more else "")
            return Example(row.origin, prompt=prompt, completion=_full(row, "output"))
        return Example(row.origin, text=_full(row, "text"))


def recognise(row: Row, spec: DataSpec) -> Shape:
    """The shape of a file's rows, from its first row and the mapping in `spec`.

    Raises:
        DataError: the columns fit no shape and no mapping is given.
    """
    names = list(row.fields)
    if spec.prompt is not None and spec.completion is not None:
        prompt, completion = Mapper("prompt", spec.prompt), Mapper("completion", spec.completion)
        mapped = f"rows are mapped: prompt {spec.prompt!r}, completion {spec.completion!r}"
        paths = (*prompt.columns, *completion.columns)
        used = {path.split(".")[0] for path in paths} | set(paths)
        return Shape("mapped", mapped + _unused(names, used), prompt, completion)
    shapes: tuple[tuple[Kind, set[str], set[str], str], ...] = (
        (
            "messages",
            {"messages"},
            {"tools"},
            "conversations: every assistant message is supervised",
        ),
        (
            "prompt",
            {"prompt", "completion"},
            {"tools"},
            "prompt + completion: completions are supervised",
        ),
        (
            "instruction",
            {"instruction", "output"},
            {"input"},
            "instruction (+ input) + output: outputs are supervised",
        ),
        ("text", {"text"}, set(), "text: every token is supervised"),
    )
    for kind, needed, optional, reading in shapes:
        if needed <= set(names):
            if kind == "prompt" and isinstance(row.fields["prompt"], list):
                reading = (
                    "lists of messages, prompt + completion: every assistant message is supervised"
                )
            return Shape(kind, f"rows are {reading}" + _unused(names, needed | optional))
    columns = ", ".join(repr(n) for n in names[:12]) or "none"
    raise DataError(
        f"{row.origin}: the columns ({columns}) are none of: prompt + completion; messages; "
        "instruction + output; text. Say how to read them, for example " + _suggest(names)
    )


def _suggest(names: list[str]) -> str:
    first, last = (names[0], names[-1]) if names else ("question", "answer")
    return f"--prompt '{{{first}}}' --completion '{{{last}}}'"


def _unused(names: list[str], used: set[str]) -> str:
    left = [repr(n) for n in names if n not in used]
    return f"; not used: {', '.join(left)}" if left else ""


def _column(row: Row, name: str) -> Any:
    if name not in row.fields:
        raise DataError(
            f"{row.origin}: no column {name!r}, which the rows before it have; "
            f"{did_you_mean(name, row.fields)}"
        )
    return row.fields[name]


def _text(row: Row, name: str) -> str:
    return write_value(_column(row, name), f"{row.origin}: {name!r}")


def _full(row: Row, name: str) -> str:
    return _not_empty(_text(row, name), row, repr(name))


def _not_empty(text: str, row: Row, what: str) -> str:
    if not text.strip():
        raise DataError(f"{row.origin}: {what} is empty, so there is nothing to learn from the row")
    return text


def _json_list(row: Row, name: str, value: Any) -> list[Any]:
    # CSV and some Parquet files hold the list as JSON text.
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"{row.origin}: {name!r} is text but not JSON ({error.msg})") from None
    if not isinstance(value, list) or not all(isinstance(m, Mapping) for m in value):
        raise DataError(f"{row.origin}: {name!r} must be a list of objects; it is {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    if isinstance(value, list):
        bad = next((v for v in value if not isinstance(v, Mapping)), None)
        return f"a list that holds {json.dumps(bad, ensure_ascii=False, default=str)[:40]}"
    return "null" if value is None else f"of type {type(value).__name__}"


def _tools(row: Row) -> tuple[Mapping[str, Any], ...]:
    value = row.fields.get("tools")
    return tuple(_json_list(row, "tools", value)) if value else ()


def _messages(row: Row) -> tuple[Message, ...]:
    messages = _json_list(row, "messages", _column(row, "messages"))
    if not any(m.get("role") == "assistant" for m in messages):
        raise DataError(
            f"{row.origin}: no message has the role 'assistant', so there is nothing to learn"
        )
    return tuple(_message(m, f"{row.origin}: message {i}") for i, m in enumerate(messages, 1))


def _message(message: Message, where: str) -> Message:
    role = message.get("role")
    if role not in ROLES:
        problem = "has no role" if role is None else f"has the role {role!r}"
        raise DataError(f"{where} {problem}; {did_you_mean(str(role), ROLES)}")
    # A null is what OpenAI writes for an absent field; templates would print it as "None".
    clean = {k: v for k, v in message.items() if v is not None}
    if isinstance(clean.get("content"), list):
        clean["content"] = "".join(_part(p, where) for p in clean["content"])
    if "content" in clean and not isinstance(clean["content"], str):
        clean["content"] = write_value(clean["content"], f"{where}: content")
    if clean.get("tool_calls"):
        clean["tool_calls"] = [_tool_call(c, where) for c in clean["tool_calls"]]
    elif not clean.get("content") and role == "assistant":
        raise DataError(f"{where} (assistant) has neither content nor tool_calls")
    clean.setdefault("content", "")
    return clean


def _part(part: Any, where: str) -> str:
    if (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    ):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise DataError(f"{where} has a content part of type {kind!r}; only text can be learnt from")


def _tool_call(call: Any, where: str) -> Mapping[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"{where}: a tool call needs function.name and function.arguments")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        # OpenAI writes the arguments as JSON text. Chat templates apply tojson to them, and would
        # quote that text a second time.
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: the arguments of {function['name']!r} are not JSON ({error.msg})"
            ) from None
    return {
        **call,
        "type": call.get("type", "function"),
        "function": {**function, "arguments": arguments},
    }
