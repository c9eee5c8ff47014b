"""/v1/completions: events -> OpenAI's objects."""

from collections.abc import AsyncIterator
from typing import Any

from lorakit.serving.answers import CompletionEvent
from lorakit.serving.http.schema import CompletionRequest
from lorakit.serving.http.service import Pending
from lorakit.serving.http.shapes import heading, token_text, usage


def _empty() -> dict[str, Any]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _logprobs(
    event: CompletionEvent, tokenizer: Any, ends: frozenset[int], offset: int
) -> dict[str, Any]:
    report = _empty()
    for token in event.tokens:
        if token.id in ends:
            continue
        text = token_text(tokenizer, token.id)
        report["tokens"].append(text)
        report["token_logprobs"].append(token.logprob)
        report["top_logprobs"].append({token_text(tokenizer, i): p for i, p in token.top})
        report["text_offset"].append(offset)
        offset += len(text)
    return report


async def chunks(
    request: CompletionRequest, pending: Pending, tokenizer: Any, ends: frozenset[int]
) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream."""
    head = heading("text_completion", "cmpl", request.model)
    counted = request.stream_options is not None and request.stream_options.include_usage
    extra: dict[str, Any] = {"usage": None} if counted else {}
    offsets = [0] * pending.choices
    async for event in pending:
        logprobs = None
        if request.reported is not None:
            logprobs = _logprobs(event, tokenizer, ends, offsets[event.choice])
            offsets[event.choice] += sum(map(len, logprobs["tokens"]))
        if not event.text and event.finish is None and logprobs is None:
            continue
        choice = {
            "index": event.choice,
            "text": event.text,
            "logprobs": logprobs,
            "finish_reason": event.finish,
        }
        yield {**head, "choices": [choice], **extra}
    if counted:
        yield {**head, "choices": [], "usage": usage(pending)}


async def whole(
    request: CompletionRequest, pending: Pending, tokenizer: Any, ends: frozenset[int]
) -> dict[str, Any]:
    """The one object of a request that does not stream."""
    choices: list[dict[str, Any]] = [
        {
            "index": i,
            "text": "",
            "logprobs": None if request.reported is None else _empty(),
            "finish_reason": None,
        }
        for i in range(pending.choices)
    ]
    async for event in pending:
        choice = choices[event.choice]
        if request.reported is not None:
            offset = sum(map(len, choice["logprobs"]["tokens"]))
            for name, values in _logprobs(event, tokenizer, ends, offset).items():
                choice["logprobs"][name] += values
        choice["text"] += event.text
        choice["finish_reason"] = event.finish
    return {
        **heading("text_completion", "cmpl", request.model),
        "choices": choices,
        "usage": usage(pending),
    }
