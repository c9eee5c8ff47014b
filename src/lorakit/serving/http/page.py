"""The page at /, and what it needs besides OpenAI's API."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from fastapi.responses import FileResponse, Response

from lorakit.serving.http.metrics import Metrics
from lorakit.serving.http.problems import Problem
from lorakit.serving.http.service import Service
from lorakit.serving.keys import Key

FILES = {
    "page.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
}
_HERE = Path(__file__).parents[1] / "page"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A report carries its own style and pictures, and runs nothing.
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


def install(
    app: FastAPI,
    service: Service,
    metrics: Metrics,
    who: Callable[..., Key],
    runs: str | None,
) -> None:
    """Add the page to an application."""
    Who = Annotated[Key, Depends(who)]

    def send(name: str) -> Response:
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        return FileResponse(_HERE / name, media_type=FILES[name], headers=headers)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return send("page.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in FILES:
            raise Problem(404, "there is no such file", "invalid_request_error")
        return send(name)

    @app.get("/v1/lorakit/status", tags=["operation"])
    async def status(key: Who) -> dict[str, Any]:
        """What the server is doing now."""
        engine = service.engine
        return {
            "base": service.catalog.base,
            "tokens_per_second": round(metrics.per_second(), 1),
            **metrics.now,
            "resident_adapters": engine.residents if engine else 0,
            "slots": service.spec.slots,
            "max_output": service.spec.max_output,
        }

    @app.get("/v1/lorakit/reports", tags=["operation"])
    async def reports(key: Who) -> dict[str, Any]:
        """The reports in the folder of runs."""
        return {"data": await service.work(lambda: sorted(_reports(runs)))}

    @app.get("/reports/{path:path}", include_in_schema=False)
    async def report(path: str, key: Who) -> Response:
        file = (await service.work(lambda: _reports(runs))).get(path)
        if file is None:
            raise Problem(404, "there is no such report", "invalid_request_error")
        headers = {"Content-Security-Policy": _REPORT_POLICY}
        return FileResponse(file, media_type="text/html", headers=headers)


def _reports(runs: str | None) -> dict[str, Path]:
    """The report pages in a folder of runs, two levels deep, by their path in it."""
    if runs is None:
        return {}
    root = Path(runs).resolve()
    files = [p for pattern in ("*.html", "*/*.html", "*/*/*.html") for p in root.glob(pattern)]
    return {
        str(path.relative_to(root)): path
        for path in files
        if path.is_file() and path.resolve().is_relative_to(root)
    }
