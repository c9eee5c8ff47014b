"""What is asked -> the prompt of an example: a typed text, named columns, or a row without its answer.

A mapping such as 'Question: {question}' makes prompts of rows in training. Wherever the adapter is
asked later, the same mapping makes them: of the one column a typed text takes the place, of several
each has to be named. `encode_prompt` then writes the example for the model, here as in training.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lorakit.data.around import like_messages
from lorakit.data.columns import CONVERSATIONS, listed, suggest_prompt
from lorakit.data.mapping import Mapper
from lorakit.data.row import Row
from lorakit.data.shapes import Example, Message, Shape
from lorakit.data.spec import DataSpec
from lorakit.errors import DataError, did_you_mean


@dataclass(frozen=True)
class PromptForm:
    """How prompts are made of what is asked.

    Attributes:
        prompt: the mapping over columns, such as '{text}\\n'; None where texts are prompts as they
            are.

    Raises:
        ConfigError: the mapping has a brace that opens or closes nothing, or names no column.
    """

    prompt: str | None = None

    def __post_init__(self) -> None:
        if self.prompt is not None:
            Mapper("prompt", self.prompt)

    @classmethod
    def of(cls, spec: DataSpec) -> "PromptForm":
        """The form that a mapping of rows has."""
        return cls(spec.prompt)

    @cached_property
    def _mapper(self) -> Mapper | None:
        return None if self.prompt is None else Mapper("prompt", self.prompt)

    @property
    def written(self) -> str:
        """The mapping with its newlines and tabs in it; empty where there is none."""
        return self._mapper.written if self._mapper else ""

    @property
    def several(self) -> bool:
        """Whether a typed text cannot say what is asked, because several columns make a prompt."""
        return len(self.columns) > 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that make a prompt, each once; empty where there is no mapping."""
        return tuple(dict.fromkeys(self._mapper.columns)) if self._mapper else ()

    def typed(self, text: str, origin: str = "the prompt", hint: str = "") -> Example:
        """The example of a typed text.

        Without a mapping the text is the prompt. With one column it takes the column's place. With
        several it has to be a JSON object that names them.

        Args:
            text: as it was typed.
            origin: what to call it in messages.
            hint: what else can be done, for the message.

        Raises:
            DataError: several columns are needed, and the text is no JSON object with them.
        """
        if self._mapper is None:
            return Example(origin, prompt=text)
        if not self.several:
            return self.filled({self.columns[0]: text}, origin)
        try:
            values = json.loads(text)
        except ValueError:
            values = None
        if not isinstance(values, Mapping):
            raise DataError(
                f"{origin}: prompts are made of the columns {listed(self.columns)} "
                f"({self.written!r}): give a JSON object with them, such as "
                f"{json.dumps(dict.fromkeys(self.columns, '…'), ensure_ascii=False)}{hint}"
            )
        return self.filled(values, origin)

    def filled(self, values: Mapping[str, Any], origin: str = "the prompt") -> Example:
        """The example of columns by name; without a mapping they are read as a row's.

        Raises:
            DataError: a column is missing, unknown or null.
        """
        row = Row(origin, 0, values)
        if self._mapper is None:
            return _unanswered(row)
        # A path such as a.b may be given as the key "a.b", or as b inside a.
        known = {*self.columns, *(path.split(".")[0] for path in self.columns)}
        for name in values:
            if name not in known:
                raise DataError(
                    f"{origin}: the prompt {self.written!r} has no column {name!r}; "
                    f"{did_you_mean(str(name), self.columns)}"
                )
        for path in self.columns:
            if path not in values and path.split(".")[0] not in values:
                raise DataError(
                    f"{origin}: the column {path!r} is missing, which the prompt {self.written!r} needs"
                )
        return self.row(row)

    def row(self, row: Row) -> Example:
        """The example of a row that need not hold its answer; other columns are left alone.

        Raises:
            DataError: a column of the prompt is missing or null; or there is no mapping, and the
                row's columns are not known.
        """
        if self._mapper is None:
            return _unanswered(row)
        return Example(row.origin, prompt=self._mapper.fill(row))

    def turns(
        self, messages: Sequence[Message], origin: str = "messages", hint: str = ""
    ) -> list[Message]:
        """A conversation whose user messages are typed texts: each is put through the mapping.

        Every user message, and not only the last: in training each prompt was written by the
        mapping, so the earlier ones look as they did when they were asked.

        Raises:
            DataError: as `typed`.
        """
        if self._mapper is None:
            return list(messages)
        written: list[Message] = []
        for number, message in enumerate(messages, 1):
            if message.get("role") == "user":
                where = f"{origin}: message {number}"
                prompt = self.typed(str(message.get("content") or ""), where, hint).prompt
                message = {**message, "content": prompt}
            written.append(message)
        return written


def _unanswered(row: Row) -> Example:
    """The example of a row in one of the known forms, whether its answer is there or not.

    Raises:
        DataError: no known column holds what is asked.
    """
    names = row.fields
    conversation = next((name for name in CONVERSATIONS if name in names), None)
    if conversation is not None:
        return Shape("messages", "", messages=conversation).asked(row)
    for better, column in (("chosen", "chosen"), ("preferred_output", "input")):
        if better in names and "prompt" not in names and like_messages(names.get(column)):
            return Shape("messages", "", messages=column).asked(row)
    if "prompt" in names:
        return Shape("prompt", "").asked(row)
    if "instruction" in names:
        return Shape("instruction", "").asked(row)
    raise DataError(
        f"{row.origin}: the columns ({listed(list(names))}) hold none of: prompt; messages; "
        f"instruction. Say how the prompt is written, for example {suggest_prompt(row.fields)}"
    )
