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
