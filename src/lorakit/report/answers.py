"""Sample answers as the page shows them: judged, and JSON line by line against the reference."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorakit.report.numbers import is_number, percent

Mark = Literal["", "wrong", "extra", "missing"]

# A page is for reading: longer text is truncated here; samples.json has all of it.
_MOST_CHARACTERS = 1500
_MOST_BRACKETS = 200


@dataclass(frozen=True)
class AnswerLine:
    """A line of an answer, and how it differs from the reference."""

    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Answer:
    """One answer under its heading; `state` and `judgement` say the same, to CSS and to a reader."""

    heading: str
    lines: tuple[AnswerLine, ...]
    code: bool
    state: Literal["reference", "right", "partly", "wrong", "differs"]
    judgement: str


@dataclass(frozen=True)
class Sample:
    """A held-out row: its prompt and the answers to it."""

    prompt: str
    answers: tuple[Answer, ...]


def sample(record: Mapping[str, Any]) -> Sample:
    """A record of samples.json, ready to be shown; a missing text is left out."""
    reference = _text(record.get("reference"))
    wanted = _parse(reference)
    answers = []
    if reference is not None:
        lines = _json_lines(wanted, None) if isinstance(wanted, dict) else _plain(reference)
        answers.append(Answer("Reference", lines, wanted is not None, "reference", ""))
    for key, heading in (("before", "Before"), ("after", "After")):
        text = _text(record.get(key))
        if text is not None:
            answers.append(_answer(heading, text, reference, wanted, record.get(f"{key}_score")))
    return Sample(_truncated(_text(record.get("prompt")) or ""), tuple(answers))


def sample_of_many(record: Mapping[str, Any]) -> Sample:
    """The same for a record whose "answers" are a list of who, text and score."""
    reference = _text(record.get("reference"))
    wanted = _parse(reference)
    answers = []
    if reference is not None:
        lines = _json_lines(wanted, None) if isinstance(wanted, dict) else _plain(reference)
        answers.append(Answer("Reference", lines, wanted is not None, "reference", ""))
    for each in record.get("answers") or ():
        who = str(each["who"])
        heading = who[0].upper() + who[1:]
        text = _text(each.get("text")) or ""
        answers.append(_answer(heading, text, reference, wanted, each.get("score")))
    return Sample(_truncated(_text(record.get("prompt")) or ""), tuple(answers))


def _answer(heading: str, text: str, reference: str | None, wanted: Any, score: Any) -> Answer:
    given = _parse(text)
    if isinstance(given, dict) and isinstance(wanted, dict):
        lines = _json_lines(given, wanted)
    else:
        lines = _plain(text)
    state, judgement = _judge(text, reference, given, wanted, score)
    # Truncated JSON is still easier to read in a fixed-width font.
    code = given is not None or text.lstrip()[:1] in ("{", "[")
    return Answer(heading, lines, code, state, judgement)


def _judge(
    text: str, reference: str | None, given: Any, wanted: Any, score: Any
) -> tuple[Literal["right", "partly", "wrong", "differs"], str]:
    if is_number(score):
        if score >= 1:
            return "right", "right"
        if score <= 0:
            return "wrong", "not JSON" if wanted is not None and given is None else "wrong"
        return "partly", f"{percent(score, 0)} right"
    if reference is None:
        return "differs", ""
    if text.strip() == reference.strip() or (wanted is not None and _same(given, wanted)):
        return "right", "right"
    if isinstance(given, dict) and isinstance(wanted, dict):
        right = sum(key in given and _same(given[key], part) for key, part in wanted.items())
        fields = len(given.keys() | wanted.keys())
        return ("partly", f"{right} of {fields} fields right") if right else ("wrong", "wrong")
    if wanted is not None:
        return "wrong", "not JSON" if given is None else "wrong"
    # Free text that differs from one reference is not thereby wrong.
    return "differs", "differs"


def _json_lines(
    value: Mapping[str, Any], wanted: Mapping[str, Any] | None
) -> tuple[AnswerLine, ...]:
    """One line for each field of the object; fields that the reference has besides come last."""
    lines = [AnswerLine("{")]
    for index, (key, part) in enumerate(value.items(), start=1):
        mark: Mark = ""
        if wanted is not None:
            mark = "extra" if key not in wanted else "" if _same(part, wanted[key]) else "wrong"
        shown = json.dumps(part, ensure_ascii=False)
        comma = "," if index < len(value) else ""
        lines.append(
            AnswerLine(_truncated(f"  {json.dumps(key, ensure_ascii=False)}: {shown}{comma}"), mark)
        )
    missing = [key for key in wanted or () if key not in value]
    lines += [AnswerLine(f"  {json.dumps(key, ensure_ascii=False)}", "missing") for key in missing]
    return (*lines, AnswerLine("}"))


def _same(a: Any, b: Any) -> bool:
    """Equal as JSON: the order of keys does not matter, 1 is 1.0, and true is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(part, b[key]) for key, part in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _parse(text: str | None) -> Any:
    """The JSON object or list that the text is, or None; a bare number or word is text."""
    # More brackets than this are too much to show field by field, and could exhaust the stack.
    if not text or text.count("{") + text.count("[") > _MOST_BRACKETS:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None


def _plain(text: str) -> tuple[AnswerLine, ...]:
    return (AnswerLine(_truncated(text.strip())),)


def _truncated(text: str) -> str:
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_MOST_CHARACTERS]} […{len(text) - _MOST_CHARACTERS:,} more characters]"


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    # Several references: the page shows the first, as the scores take the best.
    if isinstance(value, Sequence) and value and isinstance(value[0], str):
        return str(value[0])
    return json.dumps(value, ensure_ascii=False)
