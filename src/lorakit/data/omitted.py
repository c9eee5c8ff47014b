"""What a chat template leaves out of a conversation: a row that is trained without it is refused.

Two questions are asked. Of the template, with a marker in each message's place: is this message
written at all? Of the row: does its own text stand in what was written? A template may cut white
space, and write text as JSON or as Python does; text in any of these forms counts as written.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.data.chat import ChatFormat, TemplateRefusalError
from lorakit.data.forms import THINKING_FIELDS, thinking_of
from lorakit.data.pieces import Content, content_of, squeezed
from lorakit.data.shapes import Message
from lorakit.data.spec import DROPPABLE
from lorakit.data.turns import Conversation, Turn
from lorakit.errors import DataError

# Shorter text may stand in the rendering by chance, so for it the marker alone is asked.
_SHORT = 12


@dataclass(frozen=True)
class Omission:
    """A piece of a row, which the template does not write.

    kind: a name that `--drop` takes. message: its number from 1, 0 for the tools. text: the piece.
    """

    kind: str
    message: int
    text: str


class OmissionCheck:
    """Compares conversations with their renderings; markers are asked once a form of conversation."""

    def __init__(self) -> None:
        self._unwritten: dict[Any, frozenset[tuple[str, int]]] = {}

    def omissions(self, conversation: Conversation, turn: Turn, since: int = 0) -> list[Omission]:
        """What the prompt and the answer of one turn lack of the row.

        since: the texts of so many messages were found for an earlier turn; of these the template
        alone is asked.
        """
        messages, at = conversation.messages, turn.at
        unwritten = self._by_marker(conversation, at)
        found = []
        prompt, answer = _Written(turn.prompt), _Written(turn.answer)
        for piece in _all_pieces(messages[: at + 1], conversation.tools):
            place = answer if piece.message == at + 1 else prompt
            gone = (piece.kind, piece.message) in unwritten
            gone |= piece.kind == "tools" and "tools" not in conversation.format.source
            exact = piece.kind == "tools" or piece.message == at + 1
            new = piece.message > since or not since
            if not gone and new and (exact or len(piece.text) >= _SHORT):
                gone = not place.holds(piece.text)
            if gone:
                found.append(piece)
        return found

    def _by_marker(self, conversation: Conversation, at: int) -> frozenset[tuple[str, int]]:
        messages = conversation.messages[: at + 1]
        key = (conversation.format, bool(conversation.tools), *map(_form, messages))
        if key not in self._unwritten:
            self._unwritten[key] = frozenset(
                _unwritten(conversation.format, messages, conversation.tools)
            )
        return self._unwritten[key]


def omission_error(origin: str, omission: Omission, format_: ChatFormat) -> DataError:
    """What to say of a piece that would be trained without."""
    where = f"message {omission.message}" if omission.message else "the row"
    what = DROPPABLE[omission.kind]
    excerpt = " ".join(omission.text.split())
    excerpt = excerpt if len(excerpt) <= 60 else excerpt[:57] + "…"
    # Variables have to do with thinking alone, among what may be left out.
    about = re.compile("think|reason|preserve|truncate")
    options = [v for v in format_.variables if omission.kind == "thinking" and about.search(v)]
    more = f"; the template reads the options {', '.join(options)} (--template-option)"
    return DataError(
        f"{origin}: the chat template leaves out {what} of {where} ({excerpt!r}). Give --template "
        f"a file whose template writes it, or --drop {omission.kind} to train without it"
        f"{more if options else ''}"
    )


def _all_pieces(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> Iterator[Omission]:
    """What has to be written for the last message, an answer, to be taught.

    What an earlier answer thought is not asked for: templates leave it out on purpose.
    """
    for tool in tools:
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        yield Omission("tools", 0, str(name or json.dumps(tool, default=str)))
    for number, message in enumerate(messages, 1):
        role, content = str(message["role"]), str(message.get("content") or "")
        if role != "assistant":
            kind = {"function": "tool"}.get(role, role)
            if content.strip():
                yield Omission(kind, number, content)
            continue
        if number == len(messages):
            thoughts = [thinking_of(message), *content_of(message).thoughts]
            yield from (Omission("thinking", number, t) for t in thoughts if t.strip())
        said = content_of(message).said
        calls = message.get("tool_calls") or ()
        for part in said.split("\n\n") if number == len(messages) else [said]:
            if part.strip():
                yield Omission("content", number, part)
        for call in calls:
            for text in (call["function"]["name"], *_leaves(call["function"].get("arguments"))):
                yield Omission("tool_calls", number, text)


def _leaves(value: Any) -> Iterator[str]:
    """The names and texts inside a tool call's arguments; numbers have too many ways to be written."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str) and value.strip():
        yield value


class _Written:
    """A text that a template wrote."""

    def __init__(self, text: str) -> None:
        self._text, self._squeezed = text, ""

    def holds(self, text: str) -> bool:
        """Whether it holds a text, in one of the forms that templates write."""
        if text in self._text:
            return True
        self._squeezed = self._squeezed or squeezed(self._text)
        return _stands(text, self._squeezed)


def _stands(text: str, written: str) -> bool:
    """Whether the text stands in what was written, in one of the forms that templates write."""
    escaped = json.dumps(text, ensure_ascii=False)[1:-1]
    forms = (text, escaped, json.dumps(text)[1:-1], repr(text)[1:-1])
    if any(squeezed(form) in written for form in forms):
        return True
    if any(squeezed(json.dumps(form)[1:-1]) in written for form in (escaped,)):
        return True
    # A template may read JSON, a tool's result say, and write it anew.
    try:
        value = json.loads(text)
    except ValueError:
        return False
    if not isinstance(value, dict | list):
        return False
    return all(_stands(leaf, written) for leaf in _leaves(value) if leaf != text)


def _form(message: Message) -> tuple[Any, ...]:
    """What decides how a template treats a message, its text aside."""
    content = content_of(message)
    calls = message.get("tool_calls") or ()
    return (
        message["role"],
        bool(content.said.strip()),
        (content.lead, content.tag),
        bool(thinking_of(message)),
        len(calls),
        message.get("name") is not None,
    )


def _unwritten(
    format_: ChatFormat, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, int]]:
    """(kind, message number) of what a marker in its place shows to be left out."""
    marked: list[Message] = []
    markers: dict[tuple[str, int], str] = {}

    def marker(kind: str, number: int) -> str:
        return markers.setdefault((kind, number), f"lorakit{len(markers)}mark")

    for number, message in enumerate(messages, 1):
        changed, last = dict(message), number == len(messages)
        content = str(message.get("content") or "")
        role = {"function": "tool"}.get(str(message["role"]), str(message["role"]))
        if role == "assistant":
            role = "content"
        found = content_of(message) if message["role"] == "assistant" else Content((), content)
        if content.strip():
            changed["content"] = marker(role, number) if found.said.strip() else ""
        if last and found.thoughts:
            tag = found.tag or "think"
            inside = f"{'' if found.lead else f'<{tag}>'}\n{marker('thinking', number)}\n</{tag}>"
            changed["content"] = f"{inside}\n\n{changed['content']}"
        for name in THINKING_FIELDS:
            if message.get(name) and last:
                changed[name] = marker("thinking", number)
        marked.append(changed)
    try:
        prompt = format_.render(marked[:-1], tools, prompt=True) if len(marked) > 1 else ""
        whole = format_.render(marked, tools, prompt=False)
    except TemplateRefusalError:
        return  # the row's own text, which the template takes, decides alone
    for (kind, number), text in markers.items():
        if text not in (whole if number == len(messages) else prompt):
            yield kind, number
