"""A row of too many tokens -> the same row with a shorter prompt, its answers whole.

The text of the prompt is cut, and not its tokens: what the chat template writes around it stays, so
the row is one that the template could have written, and its prompt is served token for token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lorakit.data.encode import EncodedExample, encode_examples
from lorakit.data.shapes import Example
from lorakit.data.spec import DataSpec
from lorakit.data.template import Template, Tokenizer

_TRIES = 8


def cuts_prompts(spec: DataSpec) -> bool:
    """Whether rows that are too long lose a part of their prompt."""
    return spec.too_long == "cut" and spec.cut != "end"


def excess(row: EncodedExample, limit: int | None) -> int:
    """Tokens above the limit of the longest of a row's sequences; 0 where all fit."""
    if limit is None or not row.sequences:
        return 0
    return max(0, max(map(len, row.sequences)) - limit)


def shortened(
    example: Example, tokenizer: Tokenizer, template: Template, limit: int | None, spec: DataSpec
) -> tuple[Example, EncodedExample] | None:
    """An example whose sequences fit the limit, and its tokens; the example itself where they do.

    Of a conversation the longest message of the user or a tool is cut.

    Returns:
        None where no cut of the prompt makes it fit, because what is left is too long.
    """
    (row,) = encode_examples([example], tokenizer, template, drop=spec.drop)
    over = excess(row, limit)
    if not over:
        return example, row
    text = _text(example)
    offsets: Sequence[tuple[int, int]] = tokenizer(
        [text], add_special_tokens=False, return_offsets_mapping=True
    )["offset_mapping"][0]
    removed = 0
    for _ in range(_TRIES):
        removed += over
        kept = _cut(text, offsets, removed, spec.cut)
        if not kept.strip():
            return None
        shorter = _with_text(example, kept)
        (row,) = encode_examples([shorter], tokenizer, template, drop=spec.drop)
        over = excess(row, limit)
        if not over:
            return shorter, row
    return None


def _cut(text: str, offsets: Sequence[tuple[int, int]], removed: int, where: str) -> str:
    """The text without so many of its tokens, at its beginning or in its middle."""
    count = len(offsets)
    if removed >= count:
        return ""
    if where == "prompt-start":
        return text[offsets[removed][0] :]
    head = (count - removed + 1) // 2
    tail = count - removed - head
    end = offsets[head - 1][1]
    # Several tokens may share a character, which then belongs to the head.
    return text[:end] + (text[max(end, offsets[count - tail][0]) :] if tail else "")


def _at(example: Example) -> int:
    """Which message is cut."""
    messages = example.messages or ()
    asked = [i for i, m in enumerate(messages) if m["role"] in ("user", "tool")]
    return max(asked, key=lambda i: len(_content(messages[i])), default=-1)


def _content(message: object) -> str:
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, str) else ""


def _text(example: Example) -> str:
    if example.messages is None:
        return example.prompt or ""
    at = _at(example)
    return _content(example.messages[at]) if at >= 0 else ""


def _with_text(example: Example, text: str) -> Example:
    if example.messages is None:
        return replace(example, prompt=text)
    at, messages = _at(example), list(example.messages)
    messages[at] = {**messages[at], "content": text}
    return replace(example, messages=tuple(messages))
