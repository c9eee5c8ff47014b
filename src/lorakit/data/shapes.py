"""Rows -> examples: a row read by the shape that its file was recognised to have."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lorakit.data.around import (
    column,
    full,
    history,
    instruction,
    joined,
    messages_in,
    not_empty,
    refuse_bad,
    system_message,
    text_of,
    weight_of,
)
from lorakit.data.calls import read_tools
from lorakit.data.conversations import (
    ROLES,
    Message,
    read_answers,
    read_messages,
)
from lorakit.data.example import Example
from lorakit.data.mapping import Mapper
from lorakit.data.row import Row

__all__ = ["ROLES", "Example", "Kind", "Message", "Shape"]

Kind = Literal["mapped", "messages", "prompt", "instruction", "text"]


@dataclass(frozen=True)
class Shape:
    """How rows of one file are read. `description` is one sentence for the user.

    prompt, completion, text: mappings over columns, where they are given. messages: the column with the conversation, or with its beginning. answer: the column with the
    answer; empty where the conversation holds it. weight: the column with the row's weight, or empty.
    """

    kind: Kind
    description: str
    prompt: Mapper | None = None
    completion: Mapper | None = None
    messages: str = ""
    answer: str = ""
    text: Mapper | None = None
    weight: str = ""

    def example(self, row: Row) -> Example:
        """The row as an example. Its answer may be empty: what then happens, encode.py decides.

        Raises:
            DataError: a column is missing, null or not what it should be, or the row is marked as a
                bad answer.
        """
        example = self._read(row)
        return replace(example, weight=weight_of(row, self.weight)) if self.weight else example

    def _read(self, row: Row) -> Example:
        if self.kind == "mapped":
            assert self.prompt is not None
            assert self.completion is not None
            prompt, answer = self.prompt.fill(row), self.completion.fill(row)
            return Example(row.origin, prompt=prompt, completion=answer)
        if self.kind == "text":
            if self.text is None:
                return Example(row.origin, text=full(row, "text"))
            whole = not_empty(self.text.fill(row), row, "the text")
            return Example(row.origin, text=whole)
        refuse_bad(row, numbers=self.kind == "prompt")
        return self._example(row, self._answered(row))

    def asked(self, row: Row) -> Example:
        """What a row asks, whether its answer is there or not.

        Raises:
            DataError: a column is missing, null or not what it should be.
        """
        if self.kind == "mapped":
            assert self.prompt is not None
            return Example(row.origin, prompt=self.prompt.fill(row))
        return self._example(row, None)

    def _example(self, row: Row, answered: str | list[Message] | None) -> Example:
        """The row as an example; `answered` is None where only what is asked counts."""
        system, tools = system_message(row), read_tools(row)
        asked = self._asked(row)
        if isinstance(asked, str) and not isinstance(answered, list) and not system and not tools:
            return Example(row.origin, prompt=asked, completion=answered)
        if isinstance(asked, str):
            asked = [{"role": "user", "content": asked}]
        if isinstance(answered, str):
            answered = [{"role": "assistant", "content": answered}]
        messages = joined(row, asked, answered or [], self.answer)
        if messages and messages[0]["role"] in ("system", "developer"):
            system = []  # as in LLaMA-Factory, the conversation's own comes before the column
        if answered is None and messages and messages[-1]["role"] != "assistant":
            messages = [*messages, {"role": "assistant", "content": ""}]
        return Example(row.origin, messages=read_answers(row, [*system, *messages]), tools=tools)

    def _asked(self, row: Row) -> str | list[Message]:
        """What is asked: a prompt, or the messages up to the answer (or with it)."""
        if self.kind == "messages":
            value = column(row, self.messages)
            if self.messages == "input" and isinstance(value, Mapping):
                value = value.get("messages")
            return read_messages(row, value, self.messages)
        if self.kind == "prompt":
            value = column(row, "prompt")
            messages = messages_in(row, value, "prompt")
            return text_of(row, "prompt") if messages is None else messages
        turns = history(row)
        asked = instruction(row)
        return [*turns, {"role": "user", "content": asked}] if turns else asked

    def _answered(self, row: Row) -> str | list[Message]:
        if not self.answer:
            return []
        value = column(row, self.answer)
        if value is None:
            return ""
        messages = messages_in(row, value, self.answer)
        return text_of(row, self.answer) if messages is None else messages
