"""An example by a chat template: its text, and where in that text the answers are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from lorakit.data.shapes import Example, Message
from lorakit.data.template import Template, Tokenizer
from lorakit.errors import ConfigError, DataError


@dataclass(frozen=True)
class Span:
    """text[start:end] is an answer and the token that ends it."""

    start: int
    end: int
    supervised: bool = True


# A template may say itself what the assistant generates: {% generation %}answer{% endgeneration %}.
_TAG = re.compile(r"\{%(-?\+?)\s*(end)?generation\s*(-?\+?)%\}")
# Two characters of Unicode's private use area that stand for those tags in the written text.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"


def special_texts(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The tokenizer's special tokens as text, the longest first."""
    added = (str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)
    return tuple(sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True))


class ChatWriter:
    """Writes one example by a chat template, and finds its answers in the text."""

    def __init__(
        self,
        example: Example,
        tokenizer: Tokenizer,
        template: Template,
        specials: tuple[str, ...],
    ) -> None:
        assert template.source is not None
        self.origin, self.tokenizer, self.source = example.origin, tokenizer, template.source
        self.specials = specials
        self.tools = list(example.tools) or None
        messages = example.messages or ()
        # A tag cannot tell one assistant message from another, so weights need the other way.
        self.tagged = bool(_TAG.search(self.source)) and all(m.get("weight") != 0 for m in messages)
        self._rendered: dict[tuple[int, bool], str] = {}
        calls = any(m.get("tool_calls") for m in messages)
        for used, name in ((self.tools, "tools"), (calls, "tool_calls")):
            if used and name not in self.source:
                raise DataError(
                    f"{self.origin}: the row has {name}, but the chat template has no place for "
                    "them and would leave them out: give template a file whose template has one"
                )

    def write(self, messages: Sequence[Message], *, prompt: bool) -> str:
        """The first messages of the example as text; `prompt` adds the generation prompt."""
        key = (len(messages), prompt)
        if key not in self._rendered:
            self._rendered[key] = self._render(messages, self.source, prompt)
        return self._rendered[key]

    def _render(self, messages: Sequence[Message], source: str, prompt: bool) -> str:
        try:
            text: Any = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                tools=self.tools,
                chat_template=source,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"the chat template is broken at its line {error.lineno}: {error.message}"
            ) from None
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            roles = ", ".join(m["role"] for m in messages)
            raise DataError(
                f"{self.origin}: the chat template refuses the messages ({roles}): {error}"
            ) from None
        return str(text)

    def spans(self, messages: Sequence[Message], *, prompt: bool = False) -> tuple[str, list[Span]]:
        """The messages as text, and where in it the answers are."""
        if self.tagged:
            return self._tagged(messages, prompt)
        text, spans = self.write(messages, prompt=prompt), []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                start = self.head(messages[:i], text)
                upto = self.write(messages[: i + 1], prompt=False)
                self._check(upto, text)
                turn = text[start : len(upto)]
                # The end token, but not the newline that some templates write after it.
                bare = turn.rstrip()
                end = start + len(bare if bare.endswith(self.specials) else turn)
                spans.append(Span(start, end, message.get("weight") != 0))
        return text, spans

    def head(self, messages: Sequence[Message], text: str) -> int:
        """How many characters of `text` are the prompt for the answer to `messages`."""
        if not messages:
            raise DataError(
                f"{self.origin}: the conversation begins with an assistant message, which answers "
                "nothing: put a system or user message before it, or set system"
            )
        head = self.write(messages, prompt=True)
        self._check(head, text)
        return len(head)

    def _tagged(self, messages: Sequence[Message], prompt: bool) -> tuple[str, list[Span]]:
        # transformers' return_assistant_tokens_mask reads the same tags, but gives tokens, and the
        # text must be split before it is tokenized. An if-block in the tag's place trims the
        # whitespace around it just as the tag does.
        def mark(tag: re.Match[str]) -> str:
            sign = _CLOSE if tag[2] else _OPEN
            return f"{{%{tag[1]} if true %}}{sign}{{% endif {tag[3]}%}}"

        marked = self._render(messages, _TAG.sub(mark, self.source), prompt)
        text = self.write(messages, prompt=prompt)
        if marked.replace(_OPEN, "").replace(_CLOSE, "") != text:
            raise DataError(
                f"{self.origin}: the row holds the characters U+E0F0 or U+E0F1, which lorakit uses "
                "to find the answers in the template's text"
            )
        before, *parts = marked.split(_OPEN)
        spans, at = [], len(before)
        for answer, _, after in (part.partition(_CLOSE) for part in parts):
            end = at + len(answer)
            bare = answer.rstrip()
            if bare.endswith(self.specials):
                end = at + len(bare)
            else:
                # The tag may close before the end of the turn, which must be supervised too.
                end += next((len(s) for s in self.specials if after.startswith(s)), 0)
            spans.append(Span(at, end))
            at += len(answer) + len(after)
        return text, spans

    def _check(self, part: str, text: str) -> None:
        if text.startswith(part):
            return
        same = next((i for i, (a, b) in enumerate(zip(part, text, strict=False)) if a != b), 0)
        raise DataError(
            f"{self.origin}: the chat template is not prefix-stable, so the answers cannot be found "
            f"in its text: a part of the conversation goes on {part[same : same + 30]!r}, the whole "
            f"{text[same : same + 30]!r}. Give each answer a row of its own, or give template a "
            "file whose template puts {% generation %} and {% endgeneration %} around the answers"
        )
