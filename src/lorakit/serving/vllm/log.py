"""What a program that failed last said, as a person wants to read it."""

import re

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_REASON = re.compile(r"\b[A-Za-z_.]*(?:Error|Exception)\b: \S")
_REASONS, _LINES = 3, 8


def end_of(text: str) -> str:
    """The lines that give a reason, then the last ones; "" where nothing was said.

    A program of several processes ends with the traceback of the one that waited, and what went
    wrong stands above it.

    Args:
        text: all of its log, or the end of it.
    """
    lines = [line.rstrip() for line in _COLOUR.sub("", text).splitlines() if line.strip()]
    last = lines[-_LINES:]
    reasons: list[str] = []
    for line in lines[:-_LINES]:
        match = _REASON.search(line)
        if match and line[match.start() :] not in reasons:
            reasons.append(line[match.start() :])
    return "\n".join([*reasons[:_REASONS], *last])
