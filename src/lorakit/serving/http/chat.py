"""/v1/chat/completions: events -> OpenAI's objects."""

from collections.abc import AsyncIterator
from typing import Any

from lorakit.serving.answers import CompletionEvent
from lorakit.serving.http.schema import ChatRequest
from lorakit.serving.http.service import Pending
from lorakit.serving.http.shapes import heading, token_text, usage


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


async def chunks(
    request: ChatRequest, pending: Pending, tokenizer: Any, ends: frozenset[int]
) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream."""
    head = heading("chat.completion.chunk", "chatcmpl", request.model)
    counted = request.stream_options is not None and request.stream_options.include_usage
    extra: dict[str, Any] = {"usage": None} if counted else {}
    begun: set[int] = set()
    async for event in pending:
        delta: dict[str, Any] = {}
        if event.choice not in begun:
            begun.add(event.choice)
            delta = {"role": "assistant", "content": ""}
        if event.text:
            delta["content"] = event.text
        if not delta and event.finish is None and request.reported is None:
            continue
        choice: dict[str, Any] = {
            "index": event.choice,
            "delta": delta,
            "logprobs": None if request.reported is None else _logprobs(event, tokenizer, ends),
            "finish_reason": event.finish,
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
    async for event in pending:
        choice = choices[event.choice]
        choice["message"]["content"] += event.text
        choice["finish_reason"] = event.finish
        if request.reported is not None:
            choice["logprobs"]["content"] += _logprobs(event, tokenizer, ends)["content"]
    head = heading("chat.completion", "chatcmpl", request.model)
    return {**head, "choices": choices, "usage": usage(pending)}
