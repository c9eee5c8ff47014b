"""Messages -> text by a chat template: the prompt as it is served, and a conversation as written.

Everything that writes a conversation goes through `ChatFormat`: training, generation and serving.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import jinja2

from lorakit.data.forms import (
    PROBE,
    PROBE_TOOLS,
    THINKING_FIELDS,
    Forms,
    calling,
    find_forms,
    in_parts,
    thinking_of,
    with_text_arguments,
)
from lorakit.data.shapes import Example, Message
from lorakit.data.template import Template, Tokenizer, template_variables
from lorakit.errors import ConfigError, DataError

# A template may say itself what the assistant generates: {% generation %}answer{% endgeneration %}.
_TAG = re.compile(r"\{%(-?\+?)\s*(end)?generation\s*(-?\+?)%\}")
# Two characters of Unicode's private use area that stand for those tags in the written text.
OPEN, CLOSE = "\ue0f0", "\ue0f1"


def special_texts(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The tokenizer's special tokens as text, the longest first."""
    added = (str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)
    return tuple(sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True))


class TemplateRefusalError(Exception):
    """What a template raised on some messages: `str()` is its own reason."""


class ChatFormat:
    """A chat template with its variables, for one tokenizer; with or without tools."""

    def __init__(self, tokenizer: Tokenizer, template: Template, *, tools: bool = False) -> None:
        assert template.source is not None
        self.tokenizer = tokenizer
        self.source = (tools and template.tool_source) or template.source
        self.options = dict(template.options)
        self.specials = special_texts(tokenizer)
        self.tagged = bool(_TAG.search(self.source))
        # Where two renderings part is only asked between whole tokens, tags and words.
        exact = "|".join(map(re.escape, self.specials))
        self._atom = re.compile((exact and exact + "|") + r"<[^<>\s]*>|\w+|\s|.", re.DOTALL)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        prompt: bool,
        marked: bool = False,
    ) -> str:
        """The messages as text, in the form in which the template takes them.

        prompt: add the generation prompt. marked: OPEN and CLOSE stand for the generation tags.

        Raises:
            TemplateRefusalError: the template raises an error.
            ConfigError: the template is no Jinja.
        """
        return self._render(
            [self._message(m) for m in messages], tools, prompt, _marked(self.source, marked)
        )

    def atoms(self, text: str) -> list[str]:
        """The text cut between tokens, tags, words and single characters."""
        return self._atom.findall(text)

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        prompt: bool,
        source: str,
    ) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tools=list(tools) if tools else None,
                    chat_template=source,
                    tokenize=False,
                    add_generation_prompt=prompt,
                    **self.options,
                )
            )
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"the chat template is broken at its line {error.lineno}: {error.message}"
            ) from None
        except Exception as error:
            # A template is a program: whatever it raises is its refusal of these messages.
            raise TemplateRefusalError(str(error).strip() or type(error).__name__) from None

    @cached_property
    def forms(self) -> Forms:
        """The forms that the template takes, found by rendering."""

        def render(messages: Sequence[Message], tools: Any) -> str | None:
            try:
                return self._render(messages, tools, False, self.source)
            except TemplateRefusalError:
                return None

        return find_forms(render, self.source)

    def _message(self, message: Message) -> dict[str, Any]:
        written = {k: v for k, v in message.items() if k not in ("weight", *THINKING_FIELDS)}
        if thought := thinking_of(message):
            named = next(k for k in THINKING_FIELDS if message.get(k))
            written[self.forms.thinking or named] = thought
        if message.get("tool_calls") and self.forms.text_arguments:
            written["tool_calls"] = [with_text_arguments(c) for c in message["tool_calls"]]
        return in_parts(written, self.forms.parts)

    @cached_property
    def variables(self) -> tuple[str, ...]:
        """The variables of the template that an option may set."""
        return template_variables(self.source)

    @cached_property
    def eos(self) -> str | None:
        """The tokenizer's own end token, as text."""
        eos = self.tokenizer.eos_token_id
        return None if eos is None else str(self.tokenizer.decode([eos]))

    @cached_property
    def endings(self) -> dict[bool, "Ending"]:
        """How the next turn ends an answer where the template writes no end with the answer.

        [False]: an answer before a user message. [True]: a tool call before its result. Missing
        where no special token follows there, or the template refuses such a conversation.
        """
        user, answer = ({"role": r, "content": "question"} for r in ("user", "assistant"))
        result = {"role": "tool", "name": "find", "tool_call_id": "abcdef123", "content": PROBE}
        found = {}
        for calls, messages in (
            (False, [user, answer, {**user, "content": PROBE}]),
            (True, [*calling({"town": "Oslo"}), result]),
        ):
            tools = PROBE_TOOLS if calls else None
            try:
                text = self.render(messages, tools, prompt=False)
                before = self.render(messages[:-1], tools, prompt=False).rstrip()
            except TemplateRefusalError:
                continue
            header = text[len(before) :].partition(PROBE)[0]
            special = next((s for s in self.specials if header.lstrip().startswith(s)), "")
            if text.startswith(before) and special:
                end = header.index(special) + len(special)
                opens = not any(s in header[end:] for s in self.specials)
                found[calls] = Ending(header[:end], opens)
        return found


@dataclass(frozen=True)
class Ending:
    """White space and the special token after an answer.

    opens_turn: the token is also the first of the next turn's own header.
    """

    text: str
    opens_turn: bool


@lru_cache(maxsize=16)
def chat_format(tokenizer: Tokenizer, template: Template, tools: bool) -> ChatFormat:
    """The `ChatFormat` of a tokenizer and a template; what was asked of it is remembered."""
    return ChatFormat(tokenizer, template, tools=tools)


def format_for(example: Example, tokenizer: Tokenizer, template: Template) -> ChatFormat:
    """The `ChatFormat` that writes an example."""
    return chat_format(tokenizer, template, bool(example.tools))


def refused(origin: str, messages: Sequence[Message], error: Exception) -> DataError:
    """The error for messages that a template refuses."""
    roles = ", ".join(str(m["role"]) for m in messages)
    return DataError(f"{origin}: the chat template refuses the messages ({roles}): {error}")


def _marked(source: str, marked: bool) -> str:
    # An if-block in the tag's place trims the whitespace around it just as the tag does.
    def mark(tag: re.Match[str]) -> str:
        return f"{{%{tag[1]} if true %}}{CLOSE if tag[2] else OPEN}{{% endif {tag[3]}%}}"

    return _TAG.sub(mark, source) if marked else source
