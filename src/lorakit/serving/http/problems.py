"""What every error looks like: OpenAI's form, so that its package raises the right exception."""

import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lorakit.errors import AdapterError, ConfigError, DataError, LorakitError, StoreError
from lorakit.serving.answers import StoppingError
from lorakit.serving.catalog import ForbiddenError, UnknownModelError
from lorakit.serving.scheduler import QueueFullError


class Problem(LorakitError):  # noqa: N818 - a client's, not the program's
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        kind: OpenAI's type of it.
        code: OpenAI's code, or None.
        after: seconds after which to try again, or None.
    """

    def __init__(
        self, status: int, text: str, kind: str, code: str | None = None, after: float | None = None
    ) -> None:
        super().__init__(text)
        self.status, self.kind, self.code, self.after = status, kind, code, after

    def body(self) -> dict[str, Any]:
        """As JSON."""
        inner = {"message": str(self), "type": self.kind, "param": None, "code": self.code}
        return {"error": inner}

    def response(self) -> JSONResponse:
        """As a response."""
        headers = {}
        if self.after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.after)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def bad(text: str) -> Problem:
    """A request that cannot be understood."""
    return Problem(400, text, "invalid_request_error")


def busy(text: str, after: float) -> Problem:
    """One request too many."""
    return Problem(429, text, "rate_limit_error", "rate_limit_exceeded", after)


def as_problem(error: LorakitError) -> Problem:
    """What a client is told of an error of lorakit's."""
    match error:
        case Problem():
            return error
        case UnknownModelError():
            return Problem(404, str(error), "invalid_request_error", "model_not_found")
        case ForbiddenError():
            return Problem(403, str(error), "permission_error", "forbidden")
        case StoppingError():
            return Problem(503, str(error), "server_error", "stopping", after=5)
        case QueueFullError():
            return busy(str(error), 1)
        case DataError() | ConfigError() | StoreError():
            return bad(str(error))
        case AdapterError():
            return Problem(400, str(error), "invalid_request_error", "adapter_error")
    return Problem(503, str(error), "server_error", after=5)


def install(app: FastAPI) -> None:
    """Let an application answer every error in this form."""

    @app.exception_handler(LorakitError)
    async def of_lorakit(request: Request, error: LorakitError) -> JSONResponse:
        return as_problem(error).response()

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = error.errors()
        first = problems[0] if problems else {"loc": (), "msg": "cannot be read"}
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        text = str(first["msg"]).removeprefix("Value error, ")
        return bad(f"{place}: {text}" if place else text).response()

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        kind = "invalid_request_error"
        return Problem(error.status_code, str(error.detail), kind).response()
