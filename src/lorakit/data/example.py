"""One training example, before any template: what every shape of rows becomes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorakit.data.conversations import Message
from lorakit.data.mapping import write_value


@dataclass(frozen=True)
class Example:
    """One training example, before any template. Exactly one of prompt, messages, text is given.

    prompt, completion: a prompt and its answer (completion is None where there is only a prompt).
    messages: a conversation in the form of OpenAI's chat: {"role", "content", "tool_calls"?, …}.
    tools: JSON schemas of the functions it may call. text: plain text, all of it supervised.
    origin: "file:line". weight: how much its loss counts in training.
    """

    origin: str
    prompt: str | None = None
    completion: str | None = None
    messages: tuple[Message, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None
    weight: float = 1.0

    @property
    def question(self) -> str:
        """The question, for a person to read: the prompt, or the last message before the answer."""
        if self.messages is None:
            return self.prompt if self.prompt is not None else ""
        before = [m for m in self.messages[: self.answer_at] if m["role"] != "system"]
        return str(before[-1].get("content") or "") if before else ""

    @property
    def answer(self) -> str | None:
        """The answer to compare with: the completion, or the last assistant message's content.

        A message that only calls tools answers with its calls as JSON. None for plain text.
        """
        if self.messages is None:
            return self.completion
        if self.answer_at == len(self.messages):
            return None
        last = self.messages[self.answer_at]
        if last.get("content"):
            return str(last["content"])
        return write_value([c["function"] for c in last.get("tool_calls", ())], self.origin)

    @property
    def answer_at(self) -> int:
        """Index of the last assistant message; the number of messages where there is none."""
        messages = self.messages or ()
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        return turns[-1] if turns else len(messages)

    def canonical(self) -> bytes:
        """The content, without the origin, as bytes to hash."""
        parts = [self.prompt, self.completion, self.messages, self.tools, self.text]
        return json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str).encode()
