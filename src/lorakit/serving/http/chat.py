"""/v1/chat/completions: events -> OpenAI's objects."""

import secrets
import string
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorakit.execution.tools.form import ToolForm
from lorakit.execution.tools.reader import ToolReader
from lorakit.execution.tools.values import ToolCall
from lorakit.serving.answers import CompletionEvent
from lorakit.serving.http.schema import ChatRequest
from lorakit.serving.http.service import Pending
from lorakit.serving.http.shapes import heading, token_text, usage

_LETTERS = string.ascii_letters + string.digits


def _logprobs(event: CompletionEvent, tokenizer: Any, ends: frozenset[int]) -> dict[str, Any]:
    def one(id: int, logprob: float | None) -> dict[str, Any]:
        text = token_text(tokenizer, id)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {
        "content": [
            {**one(t.id, t.logprob), "top_logprobs": [one(*other) for other in t.top]}
            for t in event.tokens
            if t.id not in ends
        ],
        "refusal": None,
    }


@dataclass
class _ChoiceWriter:
    """What one choice has said so far: its text, and the calls in it."""

    form: ToolForm | None
    reader: ToolReader | None
    calls: list[dict[str, Any]] = field(default_factory=list)

    def parts(self, event: CompletionEvent) -> Sequence[str | ToolCall]:
        """What an event adds."""
        if self.reader is None:
            return [event.text] if event.text else []
        parts = self.reader.feed(event.text)
        return parts + self.reader.finish() if event.finish is not None else parts

    def call(self, call: ToolCall) -> dict[str, Any]:
        """A call as OpenAI's object; Mistral's templates take ids of nine letters and digits only."""
        assert self.form is not None
        if self.form.name == "mistral":
            id = "".join(secrets.choice(_LETTERS) for _ in range(9))
        else:
            id = f"call_{secrets.token_hex(12)}"
        function = {"name": call.name, "arguments": call.arguments}
        self.calls.append({"id": id, "type": "function", "function": function})
        return self.calls[-1]

    def finish(self, finish: str | None) -> str | None:
        """Why the choice has ended: to call, where it calls and was not cut off."""
        return "tool_calls" if self.calls and finish == "stop" else finish


def _written(request: ChatRequest, pending: Pending) -> list[_ChoiceWriter]:
    form, several = pending.form, request.parallel_tool_calls
    return [
        _ChoiceWriter(form, None if form is None else ToolReader(form, several=several))
        for _ in range(pending.choices)
    ]


def _deltas(written: _ChoiceWriter, event: CompletionEvent) -> list[dict[str, Any]]:
    """What an event adds, each text and each part of a call as a delta of its own."""
    deltas: list[dict[str, Any]] = []
    for part in written.parts(event):
        if isinstance(part, str):
            deltas.append({"content": part})
            continue
        index = len(written.calls)
        call = written.call(part)
        function = {"name": part.name, "arguments": ""}
        deltas.append({"tool_calls": [{"index": index, **call, "function": function}]})
        rest = {"index": index, "function": {"arguments": part.arguments}}
        deltas.append({"tool_calls": [rest]})
    return deltas


async def chunks(
    request: ChatRequest, pending: Pending, tokenizer: Any, ends: frozenset[int]
) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream."""
    head = heading("chat.completion.chunk", "chatcmpl", request.model)
    counted = request.stream_options is not None and request.stream_options.include_usage
    extra: dict[str, Any] = {"usage": None} if counted else {}
    begun: set[int] = set()
    written = _written(request, pending)
    async for event in pending:
        own = written[event.choice]
        deltas = _deltas(own, event)
        if event.choice not in begun:
            begun.add(event.choice)
            first = deltas.pop(0) if deltas and "content" in deltas[0] else {}
            deltas.insert(0, {"role": "assistant", "content": "", **first})
        if not deltas:
            if event.finish is None and request.reported is None:
                continue
            deltas = [{}]
        for number, delta in enumerate(deltas):
            last = number == len(deltas) - 1
            choice: dict[str, Any] = {
                "index": event.choice,
                "delta": delta,
                # An event's tokens are told once, with the first of what they add.
                "logprobs": None
                if request.reported is None or number
                else _logprobs(event, tokenizer, ends),
                "finish_reason": own.finish(event.finish) if last else None,
            }
            yield {**head, "choices": [choice], **extra}
    if counted:
        yield {**head, "choices": [], "usage": usage(pending)}


async def whole(
    request: ChatRequest, pending: Pending, tokenizer: Any, ends: frozenset[int]
) -> dict[str, Any]:
    """The one object of a request that does not stream."""
    choices: list[dict[str, Any]] = [
        {
            "index": i,
            "message": {"role": "assistant", "content": "", "refusal": None},
            "logprobs": None if request.reported is None else {"content": [], "refusal": None},
            "finish_reason": None,
        }
        for i in range(pending.choices)
    ]
    written = _written(request, pending)
    async for event in pending:
        choice, own = choices[event.choice], written[event.choice]
        for part in own.parts(event):
            if isinstance(part, str):
                choice["message"]["content"] += part
            else:
                own.call(part)
        choice["finish_reason"] = own.finish(event.finish)
        if request.reported is not None:
            choice["logprobs"]["content"] += _logprobs(event, tokenizer, ends)["content"]
    for choice, own in zip(choices, written, strict=True):
        if own.calls:
            message = choice["message"]
            message["content"] = message["content"] or None
            message["tool_calls"] = own.calls
    head = heading("chat.completion", "chatcmpl", request.model)
    return {**head, "choices": choices, "usage": usage(pending)}
