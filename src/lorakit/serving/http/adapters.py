"""/v1/models, and registering adapters while the server runs, by vLLM's convention."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse

from lorakit.serving.catalog import ForbiddenError
from lorakit.serving.http.problems import Problem
from lorakit.serving.http.schema import LoadRequest, UnloadRequest
from lorakit.serving.http.service import Service
from lorakit.serving.keys import Key


def install(
    app: FastAPI,
    service: Service,
    who: Callable[..., Key],
    *,
    allow: bool,
    roots: Sequence[Path],
) -> None:
    """Add the routes to an application.

    Args:
        app: the application.
        service: the catalog, and a thread to ask it in.
        who: the key of a request.
        allow: whether clients may register adapters.
        roots: folders that they may do it from.
    """
    catalog, started = service.catalog, int(time.time())
    Who = Annotated[Key, Depends(who)]

    def described(card: Any) -> dict[str, Any]:
        return {
            "id": card.name,
            "object": "model",
            "created": started,
            "owned_by": "lorakit",
            "parent": None if card.kind == "base" else catalog.base,
            "lorakit": {k: v for k, v in asdict(card).items() if k != "name"},
        }

    @app.get("/v1/models", tags=["models"])
    async def models(key: Who) -> dict[str, Any]:
        """The base and its adapters."""
        cards = await service.work(catalog.list)
        return {
            "object": "list",
            "data": [described(card) for card in cards if key.may_use(card.name)],
        }

    @app.get("/v1/models/{name}", tags=["models"])
    async def model(name: str, key: Who) -> dict[str, Any]:
        """One model."""
        for card in await service.work(catalog.list):
            if card.name == name and key.may_use(name):
                return described(card)
        text = f"there is no model {name!r}"
        raise Problem(404, text, "invalid_request_error", "model_not_found")

    def check(key: Key) -> None:
        if not allow:
            raise ForbiddenError("adapters are not loaded at run time here: see --allow-loading")
        if not key.admin:
            raise ForbiddenError(f"the key {key.name!r} may not load adapters")

    @app.post("/v1/load_lora_adapter", tags=["models"], response_class=PlainTextResponse)
    async def load(body: LoadRequest, key: Who) -> PlainTextResponse:
        """Let clients ask for an adapter by a name from now on."""
        check(key)
        await service.work(lambda: catalog.register(body.lora_name, body.lora_path, roots))
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @app.post("/v1/unload_lora_adapter", tags=["models"], response_class=PlainTextResponse)
    async def unload(body: UnloadRequest, key: Who) -> PlainTextResponse:
        """Forget a name that was loaded."""
        check(key)
        await service.work(lambda: catalog.unregister(body.lora_name))
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")
