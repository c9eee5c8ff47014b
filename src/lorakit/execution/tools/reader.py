"""An answer, piece by piece -> its text and its calls. Pure.

A call is given once it is complete, because what has been sent as a call cannot become text again:
JSON that is broken, or is no call, stays text as the model wrote it. White space around calls belongs
to neither. vLLM's parsers of the same names are the reference
(vllm/tool_parsers/, vllm/parser/mistral.py of 0.32); beside them, one broken call does not make text
of the whole calls around it, and text after a call is not lost.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lorakit.execution.tools.form import (
    ARGS,
    CALL_ID,
    CLOSE,
    OPEN,
    PYTHON_TAG,
    TOOL_CALLS,
    ToolForm,
)
from lorakit.execution.tools.values import (
    Nesting,
    ToolCall,
    arguments_of,
    call_of,
    calls_of,
    end_of,
)

_FIRST_KEYS = ("name", "type", "function", "parameters", "arguments", "id")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_MOST_NAME = 256


@dataclass(frozen=True)
class _Beginning:
    """What the beginning of a text is: calls, or text; of how many characters.

    opens: whether that is the beginning of an object which is no call, so that nothing in it is one.
    """

    length: int
    calls: tuple[ToolCall, ...] = ()
    opens: bool = False


class ToolReader:
    """Reads one answer.

    Args:
        form: how calls are written.
        several: whether calls after the first are given, too; else they are left out.
    """

    def __init__(self, form: ToolForm, *, several: bool = True) -> None:
        self.form, self.several = form, several
        self._marks = {
            "hermes": (OPEN,),
            "llama3_json": (PYTHON_TAG, "{"),
            "mistral": (TOOL_CALLS,),
        }[form.name]
        self._buffer = self._space = ""
        self._object: Nesting | None = None
        self.called = 0

    def feed(self, text: str) -> list[str | ToolCall]:
        """What a piece of the answer adds: texts and calls, in their order."""
        self._buffer += text
        return list(self._read(final=False))

    def finish(self) -> list[str | ToolCall]:
        """What was held back, at the answer's end."""
        parts = list(self._read(final=True))
        if self._space and not self.called:
            parts.append(self._space)
        self._space = ""
        return parts

    def _read(self, *, final: bool) -> Iterator[str | ToolCall]:
        while self._buffer:
            if self._object is not None:
                end = self._object.end(self._buffer)
                yield from self._text(self._buffer[:end])
                self._buffer = "" if end is None else self._buffer[end:]
                self._object = self._object if end is None else None
                continue
            at = min((i for m in self._marks if (i := self._buffer.find(m)) >= 0), default=-1)
            if at < 0:
                at = len(self._buffer) - (0 if final else self._overlap())
                yield from self._text(self._buffer[:at])
                self._buffer = self._buffer[at:]
                return
            yield from self._text(self._buffer[:at])
            self._buffer = self._buffer[at:]
            reading = self._at_mark(self._buffer, final=final)
            if reading is None:
                return
            if reading.calls:
                yield from self._calls(reading.calls)
            else:
                yield from self._text(self._buffer[: reading.length])
            if reading.opens:
                self._object = Nesting()
                self._object.end(self._buffer[: reading.length])
            self._buffer = self._buffer[reading.length :]

    def _text(self, text: str) -> Iterator[str]:
        """Text, without the white space at its end, which is held until more text comes."""
        if self.called and not self._space and self.form.name == "llama3_json":
            text = re.sub(r"^\s*;", "", text)
        bare = text.rstrip()
        if bare:
            said, self._space = self._space + bare, text[len(bare) :]
            yield said
        else:
            self._space += text

    def _calls(self, calls: tuple[ToolCall, ...]) -> Iterator[ToolCall]:
        self._space = ""
        for call in calls:
            self.called += 1
            if self.several or self.called == 1:
                yield call

    def _overlap(self) -> int:
        """How many of the last characters could be the beginning of a mark."""
        return max(
            n
            for mark in self._marks
            for n in range(len(mark))
            if n == 0 or self._buffer.endswith(mark[:n])
        )

    def _at_mark(self, text: str, *, final: bool) -> _Beginning | None:
        """What the text, which begins with a mark, begins with; None where more of it is needed."""
        match self.form.name:
            case "hermes":
                return _hermes(text, final=final)
            case "llama3_json":
                return _llama(text, final=final)
            case "mistral":
                return _mistral(text, final=final)


def _hermes(text: str, *, final: bool) -> _Beginning | None:
    start = len(OPEN) + _spaces(text[len(OPEN) :])
    if text[start : start + 1] not in ("", "{"):
        return _Beginning(len(OPEN))
    end = end_of(text, start)
    call = call_of(text[start:end]) if end is not None else None
    if call is not None and end is not None:
        close = end + _spaces(text[end:])
        if text.startswith(CLOSE, close):
            return _Beginning(close + len(CLOSE), (call,))
        if final:
            return _Beginning(close, (call,))
        if CLOSE.startswith(text[close:]):
            return None
    closed = text.find(CLOSE, start)
    if closed >= 0 and (end is not None or final):
        return _Beginning(closed + len(CLOSE))
    if final or (end is not None and call is not None):
        return _Beginning(len(OPEN))
    return None


def _llama(text: str, *, final: bool) -> _Beginning | None:
    tag = len(PYTHON_TAG) if text.startswith(PYTHON_TAG) else 0
    start = tag + _spaces(text[tag:])
    if start == len(text):
        return _Beginning(len(text)) if final else None
    if text[start] != "{":
        return _Beginning(max(tag, 1))
    end = end_of(text, start)
    if end is None:
        if not final and _may_becall_of(text[start:]):
            return None
        return _Beginning(start + 1, opens=True)
    call = call_of(text[start:end], needs_arguments=True)
    return _Beginning(end, () if call is None else (call,))


def _mistral(text: str, *, final: bool) -> _Beginning | None:
    start = len(TOOL_CALLS) + _spaces(text[len(TOOL_CALLS) :])
    if text[start : start + 1] == "[":
        end = end_of(text, start)
        if end is None:
            return _Beginning(len(TOOL_CALLS)) if final else None
        return _Beginning(end, calls_of(text[start:end]))
    name = _NAME.match(text, start)
    if name is None or len(name[0]) > _MOST_NAME:
        return _Beginning(len(TOOL_CALLS)) if final or start < len(text) else None
    at = name.end()
    if text.startswith(CALL_ID, at):
        id = _NAME.match(text, at + len(CALL_ID))
        at = id.end() if id is not None else at + len(CALL_ID)
    if text.startswith(ARGS, at):
        at += len(ARGS)
    at += _spaces(text[at:])
    end = end_of(text, at) if text[at : at + 1] == "{" else None
    if end is None:
        rest = text[at:]
        unfinished = rest[:1] in ("", "{") or any(m.startswith(rest) for m in (CALL_ID, ARGS))
        return None if unfinished and not final else _Beginning(len(TOOL_CALLS))
    arguments = arguments_of(text[at:end])
    if arguments is None:
        return _Beginning(end)
    return _Beginning(end, (ToolCall(name[0], arguments),))


def _spaces(text: str) -> int:
    return len(text) - len(text.lstrip())


def _may_becall_of(text: str) -> bool:
    """Whether an object that is not complete may be a call, by its first key."""
    key = re.match(r'\{\s*"([^"]*)("?)', text)
    if key is None:
        return not text[1:].strip()
    if key[2]:
        return key[1] in _FIRST_KEYS
    return any(known.startswith(key[1]) for known in _FIRST_KEYS)
