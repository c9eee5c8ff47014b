"""The pieces of a message, and where they stand in what a template wrote."""

from collections.abc import Sequence

from lorakit.data.forms import thinking_of
from lorakit.data.shapes import Message


def pieces(message: Message) -> list[str]:
    """What a message says: its thinking, its content, and the names of the tools it calls."""
    names = [str(c["function"]["name"]) for c in message.get("tool_calls") or ()]
    return [
        p for p in (thinking_of(message), str(message.get("content") or ""), *names) if p.strip()
    ]


def squeezed(text: str) -> str:
    """The text without white space, which templates add and cut."""
    return "".join(text.split())


def first_at(text: str, start: int, said: Sequence[str]) -> int:
    """Where the first of the pieces begins; the end of the text where none is in it."""
    found = [text.find(line, start) for p in said for line in p.split("\n")[:1]]
    return min((at for at in found if at >= 0), default=len(text))


def last_end(text: str, start: int, said: Sequence[str]) -> int:
    """Where the last of the pieces ends; `start` where none is in the text."""
    found = []
    for piece in said:
        line = piece.strip().rsplit("\n", 1)[-1]
        at = text.rfind(line, start)
        if at >= 0:
            found.append(at + len(line))
    return max(found, default=start)
