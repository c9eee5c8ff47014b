"""Go's text/template as far as lorakit writes it for Ollama: an interpreter of its own.

Actions: fields (.System .Messages .Role .Content $.System), if / else if / else / end, range over
.Messages with an index, strings, and the functions eq, gt, not, and, or, len, slice. White space
stands as it is. `tests/adapters/test_go_template.py` holds it against Go itself where that is there.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()]+')


def rendered(source: str, messages: Sequence[dict[str, str]]) -> str:
    """What Ollama makes of a conversation: .System are all system messages."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    root = {"System": system, "Messages": list(messages)}
    nodes, rest = _parse(_split(source), ())
    assert rest is None
    return _run(nodes, root, root, {})


def _split(source: str) -> list[tuple[str, str]]:
    """Text and actions; two braces inside a string does not open an action."""
    parts, at = [], 0
    while (start := source.find("{{", at)) >= 0:
        parts.append(("text", source[at:start]))
        end, inside = start + 2, False
        while inside or not source.startswith("}}", end):
            if inside and source[end] == "\\":
                end += 1
            elif source[end] == '"':
                inside = not inside
            end += 1
        parts.append(("action", source[start + 2 : end].strip()))
        at = end + 2
    return [*parts, ("text", source[at:])]


def _parse(parts: list[tuple[str, str]], stop: tuple[str, ...]) -> tuple[list[Any], str | None]:
    nodes: list[Any] = []
    while parts:
        kind, text = parts.pop(0)
        if kind == "text":
            nodes.append(text)
            continue
        head = text.split()[0]
        if head in stop:
            return nodes, text
        if head == "range":
            body, _ = _parse(parts, ("end",))
            nodes.append(("range", body))
        elif head == "if":
            nodes.append(_branches(parts, text))
        else:
            nodes.append(("value", text))
    return nodes, None


def _branches(parts: list[tuple[str, str]], text: str) -> Any:
    branches = []
    while text.startswith(("if", "else if")):
        condition = text.removeprefix("else ").removeprefix("if")
        body, text = _parse(parts, ("else", "end"))
        branches.append((condition, body))
    if text == "else":
        body, _ = _parse(parts, ("end",))
        branches.append(("true", body))
    return ("if", branches)


def _run(nodes: list[Any], dot: Any, root: Any, names: dict[str, Any]) -> str:
    out = ""
    for node in nodes:
        if isinstance(node, str):
            out += node
        elif node[0] == "value":
            out += str(_value(node[1], dot, root, names))
        elif node[0] == "range":
            for i, message in enumerate(root["Messages"]):
                out += _run(node[1], message, root, {"$i": i})
        else:
            taken = (b for c, b in node[1] if c == "true" or _value(c, dot, root, names))
            out += _run(next(taken, []), dot, root, names)
    return out


def _value(text: str, dot: Any, root: Any, names: dict[str, Any]) -> Any:
    words = _WORD.findall(text)

    def field(word: str) -> Any:
        if word.startswith('"'):
            # Go's \U has eight digits, JSON's \u four.
            wide = re.sub(r"\\U([0-9a-f]{8})", lambda m: chr(int(m[1], 16)), word)
            return json.loads(wide)
        if word.startswith("$."):
            return root[word[2:]]
        if word.startswith("."):
            return dot[word[1:] if word[1:] in dot else word[1:].lower()]
        return names[word] if word in names else int(word)

    def operand() -> Any:
        word = words.pop(0)
        if word != "(":
            return field(word)
        inner = call()
        assert words.pop(0) == ")"
        return inner

    def call() -> Any:
        name = words[0]
        if name not in _FUNCTIONS:
            return operand()
        words.pop(0)
        given = []
        while words and words[0] != ")":
            given.append(operand())
        return _FUNCTIONS[name](*given)

    value = call()
    assert not words, text
    return value


_FUNCTIONS = {
    "eq": lambda a, b: a == b,
    "gt": lambda a, b: a > b,
    "not": lambda a: not a,
    "and": lambda *given: next((g for g in given if not g), given[-1]),
    "or": lambda *given: next((g for g in given if g), given[-1]),
    "len": len,
    "slice": lambda items, start: items[start:],
}
