"""Answers as they are shown, and as they are scored: thinking aside, and calls as values.

What a model generated and what the template makes of a row are read in the same way, so the tokens of
a reference are the best possible answer in every measure.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lorakit.data import Example, Template
from lorakit.data.answer import encode_answer
from lorakit.data.pieces import content_of
from lorakit.evaluation.calls import as_text
from lorakit.execution.generate import Generation, decode, end_tokens
from lorakit.execution.tools.form import ToolForm, find_form
from lorakit.execution.tools.reader import ToolReader


@dataclass(frozen=True)
class TaskAnswer:
    """An answer, generated or of a row.

    Attributes:
        text: as the model wrote it, the marks of tool calls included.
        scored: what is compared: the text after its thinking, or its calls as one JSON object
            (`lorakit.evaluation.calls.as_text`). An answer that is thinking alone is compared whole.
        finished: it ended by itself, and not at the limit.
        tokens: how many it has, its end left out.
    """

    text: str
    scored: str
    finished: bool = True
    tokens: int = 0


class AnswerReader:
    """Reads the answers of one model by one template.

    Args:
        model, tokenizer: that answered.
        template: how its prompts are written.
    """

    def __init__(self, model: Any, tokenizer: Any, template: Template) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._ends = frozenset(end_tokens(model, tokenizer, template))

    def generated(self, example: Example, generation: Generation) -> TaskAnswer:
        """What was generated for the example's prompt."""
        answer = self._read(example, generation.ids, generation.text)
        return replace(answer, finished=generation.finished)

    def reference(self, example: Example) -> TaskAnswer:
        """What the template makes of the example's own answer."""
        ids = encode_answer(example, self._tokenizer, self._template)
        length = next((i for i, token in enumerate(ids) if token in self._ends), len(ids))
        return self._read(example, ids[:length], decode(self._tokenizer, ids[:length]))

    @cached_property
    def form(self) -> ToolForm | None:
        """How calls are written; None where no known form is."""
        return find_form(self._tokenizer, self._template)

    def _read(self, example: Example, ids: Sequence[int], text: str) -> TaskAnswer:
        text = text.strip()
        said = content_of({"content": text}).said.strip() or text
        if not calls_tools(example) or self.form is None:
            return TaskAnswer(text, said, tokens=len(ids))
        shown = self._with_marks(ids, self.form)
        reader = ToolReader(self.form)
        parts = [*reader.feed(content_of({"content": shown}).said), *reader.finish()]
        content = "".join(part for part in parts if isinstance(part, str)).strip()
        calls = [
            {"name": part.name, "arguments": json.loads(part.arguments)}
            for part in parts
            if not isinstance(part, str)
        ]
        return TaskAnswer(shown, as_text(content, calls) if calls else said, tokens=len(ids))

    def _with_marks(self, ids: Sequence[int], form: ToolForm) -> str:
        """The text with the special tokens that mark calls, which decoding leaves out."""
        parts, since = [], 0
        for at, token in enumerate(ids):
            if token in form.specials:
                parts += [decode(self._tokenizer, ids[since:at])]
                parts += [str(self._tokenizer.convert_ids_to_tokens(int(token)))]
                since = at + 1
        return "".join([*parts, decode(self._tokenizer, ids[since:])]).strip()


def calls_tools(example: Example) -> bool:
    """Whether an answer to the example may call tools."""
    last = (example.messages or ())[example.answer_at : example.answer_at + 1]
    return bool(example.tools or any(message.get("tool_calls") for message in last))
