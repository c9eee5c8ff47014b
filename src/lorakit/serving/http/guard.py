"""What is turned away before anything reads it: bodies that are too large, hosts that are not us."""

from collections.abc import Callable, Sequence
from typing import Any

from lorakit.serving.http.problems import Problem


class Guard:
    """An ASGI application around another.

    Args:
        app: what is behind it.
        most: bytes of a body.
        hosts: host names that a request may use, None for any. A page on the internet
            can point a name of its own at 127.0.0.1; a browser then sends that name.
        count: called with the status of every response.
    """

    def __init__(
        self,
        app: Any,
        most: int,
        hosts: Sequence[str] | None,
        count: Callable[[int], None],
    ) -> None:
        self.app, self.most, self.hosts, self.count = app, most, hosts, count

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request through, or answer 413 or 421."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.count(message["status"])
            await send(message)

        await self._http(scope, receive, counted)

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        if self.hosts is not None and _host(headers.get("host", b"")) not in self.hosts:
            text = "this server accepts only the names of this machine as its host"
            refusal = Problem(421, text, "invalid_request_error").response()
            await refusal(scope, receive, send)
            return
        size = headers.get("content-length", b"0")
        if not size.isdigit() or int(size) > self.most:
            await self._too_large(scope, receive, send)
            return
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            if len(body) > self.most:
                await self._too_large(scope, receive, send)
                return
            if not message.get("more_body"):
                break
        given = False

        async def once() -> Any:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": bytes(body), "more_body": False}
            return await receive()

        await self.app(scope, once, send)

    async def _too_large(self, scope: Any, receive: Any, send: Any) -> None:
        text = f"the body is larger than {self.most:,} bytes"
        refusal = Problem(413, text, "invalid_request_error", "body_too_large").response()
        refusal.headers["Connection"] = "close"
        await refusal(scope, receive, send)


def _host(header: bytes) -> str:
    """The name in a Host header, without the port."""
    text = header.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
