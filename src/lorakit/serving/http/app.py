"""The application: routes, who may ask, and what it costs them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from lorakit.serving.http import adapters, chat, completions, page, problems
from lorakit.serving.http.guard import Guard
from lorakit.serving.http.metrics import Metrics
from lorakit.serving.http.problems import Problem, busy
from lorakit.serving.http.schema import ChatRequest, CompletionRequest
from lorakit.serving.http.service import Pending, Service
from lorakit.serving.http.shapes import EventStream
from lorakit.serving.keys import Key, KeyRing
from lorakit.serving.spec import LOOPBACK, HttpSpec

Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
_LOCAL = Key("local", "", admin=True)
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in {
        400: "The request cannot be understood",
        401: "No key, or an unknown one",
        403: "The key may not do this",
        404: "No such model",
        413: "The body is too large",
        429: "Too many requests; see Retry-After",
        503: "The server is stopping, or the adapter cannot be read",
    }.items()
}


class Doors:
    """Who may come in.

    Args:
        keys: None where every local user may ask.
        clock: seconds, monotonic.
    """

    def __init__(self, keys: KeyRing | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.keys, self.clock = keys, clock

    def who(self, credentials: Credentials) -> Key:
        """The key of a request.

        Raises:
            Problem: there is none, or it is not known.
        """
        if self.keys is None:
            return _LOCAL
        key = self.keys.find(credentials.credentials) if credentials is not None else None
        if key is None:
            text = "give a known API key: Authorization: Bearer lk-…"
            raise Problem(401, text, "authentication_error", "invalid_api_key")
        return key

    def admit(self, key: Key) -> None:
        """Count a request of a key.

        Raises:
            Problem: it has used its rate up.
        """
        if self.keys is not None and (wait := self.keys.admit(key, self.clock())):
            raise busy(f"the key {key.name!r} has used up its rate", wait)

    def spend(self, key: Key, pending: Pending) -> None:
        """Count a request's tokens."""
        if self.keys is not None:
            self.keys.spend(key, pending.prompt_tokens + pending.answered)


def make_app(
    service: Service, spec: HttpSpec, metrics: Metrics, keys: KeyRing | None = None
) -> FastAPI:
    """The application, ready for any ASGI server."""
    app = FastAPI(
        title="lorakit",
        summary="One base, many adapters: the model's name chooses the adapter.",
        docs_url="/docs",
        redoc_url=None,
        responses=_ERRORS,
    )
    problems.install(app)
    doors = Doors(keys)
    Who = Annotated[Key, Depends(doors.who)]

    @app.post("/v1/chat/completions", tags=["completions"])
    async def chat_completions(body: ChatRequest, request: Request, key: Who) -> Response:
        """Answer a conversation."""
        doors.admit(key)
        pending = await service.ask(body, key.may_use)
        parts = (body, pending, service.tokenizer, service.ends)
        if body.stream:
            return EventStream(pending, chat.chunks(*parts), lambda p: doors.spend(key, p))
        return await _whole(request, pending, chat.whole(*parts), lambda p: doors.spend(key, p))

    @app.post("/v1/completions", tags=["completions"])
    async def text_completions(body: CompletionRequest, request: Request, key: Who) -> Response:
        """Go on from a text, or from token ids, without any chat template."""
        doors.admit(key)
        pending = await service.ask(body, key.may_use)
        parts = (body, pending, service.tokenizer, service.ends)
        if body.stream:
            return EventStream(pending, completions.chunks(*parts), lambda p: doors.spend(key, p))
        done = completions.whole(*parts)
        return await _whole(request, pending, done, lambda p: doors.spend(key, p))

    @app.get("/health", tags=["operation"])
    async def health() -> dict[str, str]:
        """Whether steps are run."""
        engine = service.engine
        if engine is None or not engine.alive:
            raise Problem(503, "the engine is not running", "server_error", after=5)
        return {"status": "ok"}

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    async def read_metrics(key: Who) -> PlainTextResponse:
        """Figures in Prometheus's format."""
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    roots = [Path(folder) for folder in spec.loading_dirs]
    adapters.install(app, service, doors.who, allow=spec.allow_loading, roots=roots)
    page.install(app, service, metrics, doors.who, spec.runs)

    hosts = LOOPBACK if spec.host in LOOPBACK else None
    app.add_middleware(
        Guard,
        most=spec.max_body_kb * 1000,
        hosts=hosts,
        count=lambda status: metrics.requests.labels(str(status)).inc(),
    )
    return app


async def _whole(
    request: Request, pending: Pending, answer: Any, done: Callable[[Pending], None]
) -> Response:
    """Wait for an answer, as long as the client does."""
    try:
        async with pending.watched(request.receive):
            return JSONResponse(await answer)
    finally:
        done(pending)
