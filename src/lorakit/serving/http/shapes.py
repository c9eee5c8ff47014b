"""What both kinds of completion share: streams, usage, tokens with their log-probabilities."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response

from lorakit.errors import LorakitError
from lorakit.serving.http.problems import as_problem
from lorakit.serving.http.service import Pending

Done = Callable[[Pending], None]
"""Called once when a request is over, for what it cost."""


def heading(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """What every object begins with."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def usage(pending: Pending) -> dict[str, Any]:
    """Tokens read and written so far."""
    return {
        "prompt_tokens": pending.prompt_tokens,
        "completion_tokens": pending.answered,
        "total_tokens": pending.prompt_tokens + pending.answered,
        "prompt_tokens_details": {"cached_tokens": pending.reused},
    }


def token_text(tokenizer: Any, id: int) -> str:
    """A token as text; what is no whole character by itself is shown as U+FFFD."""
    return str(tokenizer.decode([id]))


class EventStream(Response):
    """Server-sent events, which end with the client.

    Args:
        pending: the request.
        chunks: the objects to send.
        done: called at the end.
    """

    media_type = "text/event-stream"

    def __init__(self, pending: Pending, chunks: AsyncIterator[dict[str, Any]], done: Done) -> None:
        self.pending, self.chunks, self.done = pending, chunks, done
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send each object as it comes."""

        async def write(data: str, *, more: bool = True) -> None:
            body = f"data: {data}\n\n".encode() if data else b""
            await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            async with self.pending.watched(receive):
                await send(
                    {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                )
                try:
                    async for chunk in self.chunks:
                        await write(json.dumps(chunk, ensure_ascii=False))
                except LorakitError as error:
                    await write(json.dumps(as_problem(error).body()))
                await write("[DONE]")
                await write("", more=False)
        finally:
            self.done(self.pending)
