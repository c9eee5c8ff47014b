"""The pieces of a message, and where they stand in what a template wrote."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorakit.data.forms import thinking_of
from lorakit.data.shapes import Message


def pieces(message: Message) -> list[str]:
    """What a message says: its thinking, its content, and the names of the tools it calls."""
    names = [str(c["function"]["name"]) for c in message.get("tool_calls") or ()]
    return [
        p for p in (thinking_of(message), str(message.get("content") or ""), *names) if p.strip()
    ]


_THOUGHT = re.compile(r"<(think|thinking|thought|seed:think)>(.*?)</\1>", re.DOTALL)
_CLOSED = "</think>"


@dataclass(frozen=True)
class Content:
    """What an answer's text holds: its thinking between tags, and what is said.

    lead: thinking before a first `</think>` that nothing opened, as rows of models have it whose
    prompt opens the thinking. tag: of the first thinking between tags.
    """

    thoughts: tuple[str, ...]
    said: str
    lead: bool = False
    tag: str | None = None


def content_of(message: Message) -> Content:
    """The content of a message, thinking and speech apart."""
    text, lead = str(message.get("content") or ""), []
    before, closed, after = text.partition(_CLOSED)
    if closed and "<think>" not in before:
        text, lead = after, [before]
    found = _THOUGHT.search(text)
    thoughts = [*lead, *(m[2] for m in _THOUGHT.finditer(text))]
    return Content(
        tuple(t for t in thoughts if t.strip()),
        _THOUGHT.sub(" ", text),
        bool(lead and lead[0].strip()),
        found[1] if found else None,
    )


def squeezed(text: str) -> str:
    """The text without white space, which templates add and cut."""
    return "".join(text.split())


def first_at(text: str, start: int, said: Sequence[str]) -> int:
    """Where the first of the pieces begins; the end of the text where none is in it."""
    found = [text.find(line, start) for p in said for line in p.strip().split("\n")[:1]]
    return min((at for at in found if at >= 0), default=len(text))


def last_at(text: str, start: int, said: Sequence[str]) -> int:
    """Where the first piece that is in the text begins for the last time; else the text's end."""
    found = [text.rfind(p.strip(), start) for p in said]
    return next((at for at in found if at >= 0), len(text))


def last_end(text: str, start: int, said: Sequence[str]) -> int:
    """Where the last of the pieces ends; `start` where none is in the text."""
    found = []
    for piece in said:
        line = piece.strip().rsplit("\n", 1)[-1]
        at = text.rfind(line, start)
        if at >= 0:
            found.append(at + len(line))
    return max(found, default=start)


def longest_end(atoms: Sequence[str], text: str) -> str:
    """The longest end of some atoms that stands in a text."""
    low, high = 0, len(atoms)
    while low < high:
        middle = (low + high + 1) // 2
        if "".join(atoms[len(atoms) - middle :]) in text:
            low = middle
        else:
            high = middle - 1
    return "".join(atoms[len(atoms) - low :])


def same_end(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """How many of the last items are the same."""
    pairs = enumerate(zip(reversed(ours), reversed(theirs), strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
