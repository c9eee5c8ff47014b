"""`lorakit serve`: a base, its adapters, an engine and a server, put together."""

import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lorakit.adapters.store import Store
from lorakit.data import Template
from lorakit.errors import ConfigError, EngineError
from lorakit.files.cache import Progress, no_progress
from lorakit.models import ModelSpec
from lorakit.models.fingerprint import BaseIdentity
from lorakit.serving.catalog import Catalog, Holder, find_folders
from lorakit.serving.keys import read_keys
from lorakit.serving.opening import open_own
from lorakit.serving.runtime import Runtime
from lorakit.serving.spec import EngineSpec, HttpSpec, RuntimeSpec

_log = logging.getLogger("lorakit.serving")
_SWITCH_SECONDS = 0.0005
"""How long the event loop may keep the engine's thread from starting its next product: Python's own
5 milliseconds are many products, and the engine asks for the interpreter after each."""
_OWN = RuntimeSpec()


@dataclass(frozen=True)
class Ready:
    """A server that can be started.

    Attributes:
        app: the ASGI application.
        engine: what computes, not started.
        catalog: its models.
        notes: sentences for the user.
    """

    app: Any
    engine: Runtime
    catalog: Catalog
    notes: tuple[str, ...]


def make_ready(
    model: ModelSpec,
    spec: EngineSpec,
    http: HttpSpec,
    runtime: RuntimeSpec = _OWN,
    *,
    adapters: Sequence[str | Path] = (),
    store: str | Path | None = None,
    force: bool = False,
    progress: Progress = no_progress,
    given: Collection[str] = (),
) -> Ready:
    """Load a base and build the server around it.

    Args:
        model: the base.
        spec, http: limits, and where to listen.
        runtime: what computes; vLLM can answer when this returns.
        adapters: folders, or names in the store; every name of the store without any.
        store: its folder; the user's own by default.
        force: serve adapters although they were trained on another base.
        progress: called during a download of the built-in model ("download", bytes) and the start of
            vLLM ("vllm", seconds so far).
        given: names of the options in `spec` that the user gave; of the others vLLM decides those
            that depend on its device.

    Raises:
        InputError: the base, an adapter that was named, the key file or an option cannot be used.
        EngineError: vLLM does not start.
    """
    from lorakit.serving.http.app import make_app
    from lorakit.serving.http.metrics import Metrics
    from lorakit.serving.http.service import Service

    keys = read_keys(http.keys) if http.keys is not None else None
    folders, names = find_folders(adapters)
    adapter_store = Store(store)

    def make_catalog(identity: BaseIdentity, template: Template, holder: Holder) -> Catalog:
        return Catalog(
            *(Path(model.model).name, identity, template, holder),
            store=adapter_store if names or not folders else None,
            names=names or None,
            folders=folders,
            force=force,
            held=model.base_dtype,
        )

    if runtime.engine == "vllm":
        from lorakit.serving.vllm.opening import open_vllm

        opened = open_vllm(model, spec, runtime, make_catalog, progress, given)
    else:
        opened = open_own(model, spec, make_catalog, progress)
    catalog = opened.catalog
    if catalog.base in (*folders, *(entry.name for entry in adapter_store.list())):
        raise ConfigError(
            f"an adapter is called {catalog.base!r}, like the base: rename it, since a model's name "
            "chooses the adapter"
        )
    for name in names:
        adapter_store.checked(name)  # what the operator named has to be right
    for name in (*folders, *names):
        catalog.resolve(name)
    metrics = Metrics(opened.way)
    service = Service(
        *(catalog, opened.tokenizer, opened.ends, spec, opened.context, http.max_choices),
        opened.embeddings,
    )
    app = make_app(service, http, metrics, keys)
    # Last, because what it starts has to be stopped again.
    service.engine = engine = opened.begin(service.deliver, metrics)
    return Ready(app, engine, catalog, opened.notes)


def listen(spec: HttpSpec) -> socket.socket:
    """A socket at the server's address.

    Raises:
        ConfigError: the address is not to be had.
    """
    family = socket.AF_INET6 if ":" in spec.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((spec.host, spec.port))
        sock.listen(2048)  # who comes before the base is loaded waits
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {spec.host} port {spec.port}: {error.strerror}; --port 0 takes a "
            "free one"
        ) from None
    return sock


def address(sock: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(ready: Ready, sock: socket.socket, spec: HttpSpec) -> None:
    """Serve until SIGINT or SIGTERM; then let running answers end, for `spec.drain_seconds`.

    From the signal on new requests are refused with 503. A second signal ends everything at once.

    Raises:
        EngineError: what computes has ended by itself.
    """
    server = make_server(ready, spec)
    ready.engine.start()
    # uvicorn sends itself the signal again when all is done, for a handler that was there before.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with often_switched(), contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[sock])
        failure = ready.engine.failure
    finally:
        signal.signal(signal.SIGTERM, before)
        ready.engine.stop()
    if failure is not None:
        raise EngineError(failure)


def make_server(ready: Ready, spec: HttpSpec) -> Any:
    """A uvicorn server whose signals also close the engine's door, and which ends with the engine."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            ready.engine.refuse()
            super().handle_exit(sig, frame)

        async def on_tick(self, counter: int) -> bool:
            return await super().on_tick(counter) or ready.engine.failure is not None

    return Server(
        uvicorn.Config(
            ready.app,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=max(1, round(spec.drain_seconds)),
            timeout_keep_alive=30,
            limit_concurrency=4096,
        )
    )


@contextlib.contextmanager
def often_switched() -> Iterator[None]:
    """Let the engine's thread have the interpreter sooner than Python gives it by itself."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
