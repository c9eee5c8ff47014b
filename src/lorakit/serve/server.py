"""`lorakit serve`: a base, its adapters, an engine and a server, put together."""

import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lorakit.adapters.store import Store
from lorakit.errors import ConfigError
from lorakit.models import ModelSpec
from lorakit.models.cache import Progress, no_progress
from lorakit.models.generate import end_tokens
from lorakit.run.session import open_base
from lorakit.serve.cache import size_for
from lorakit.serve.catalog import Catalog, find_folders
from lorakit.serve.engine import Engine
from lorakit.serve.forward import open_forward
from lorakit.serve.keys import read_keys
from lorakit.serve.spec import EngineSpec, HttpSpec

_log = logging.getLogger("lorakit.serve")
_SWITCH_SECONDS = 0.0005
"""How long the event loop may keep the engine's thread from starting its next product: Python's own
5 milliseconds are many products, and the engine asks for the interpreter after each."""


@dataclass(frozen=True)
class Ready:
    """A server that can be started.

    Attributes:
        app: the ASGI application.
        engine: its engine, not started.
        catalog: its models.
        notes: what to say aloud, one sentence each.
    """

    app: Any
    engine: Engine
    catalog: Catalog
    notes: tuple[str, ...]


def make_ready(
    model: ModelSpec,
    spec: EngineSpec,
    http: HttpSpec,
    *,
    adapters: Sequence[str | Path] = (),
    store: str | Path | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> Ready:
    """Load a base and build the server around it.

    Args:
        model: the base.
        spec, http: limits, and where to listen.
        adapters: folders, or names in the store; every name of the store without any.
        store: its folder; the user's own by default.
        force: serve adapters although they were trained on another base.
        progress: told of a download of the built-in model.

    Raises:
        InputError: the base, an adapter that was named, or the key file cannot be used.
    """
    from lorakit.serve.http.app import make_app
    from lorakit.serve.http.metrics import Metrics
    from lorakit.serve.http.service import Service

    keys = read_keys(http.keys) if http.keys is not None else None
    folders, names = find_folders(adapters)
    session = open_base(model, progress=progress)
    context = session.context_length
    largest = size_for(min(context, spec.max_prompt + spec.max_output))
    ends = frozenset(end_tokens(session.model, session.tokenizer))
    forward = open_forward(session.model, spec, largest)
    kept = Store(store)
    catalog = Catalog(
        *(Path(model.model).name, session.identity, session.template, forward.bank),
        store=kept if names or not folders else None,
        names=names or None,
        folders=folders,
        force=force,
    )
    if catalog.base in (*folders, *(entry.name for entry in kept.list())):
        raise ConfigError(
            f"an adapter is called {catalog.base!r}, like the base: rename it, since a model's name "
            "chooses the adapter"
        )
    for name in names:
        kept.checked(name)  # what the operator named has to be right
    for name in (*folders, *names):
        catalog.resolve(name)
    metrics = Metrics()
    service = Service(catalog, session.tokenizer, ends, spec, context, http.max_choices)
    engine = Engine(forward, session.tokenizer, spec, largest, service.deliver, metrics)
    service.engine = engine
    cells = forward.arenas[0].shape[0]
    notes = (
        f"{len(catalog.list()) - 1} adapters; {spec.slots} slots of rank {spec.slot_rank} hold "
        f"{spec.slots * forward.bank.slot_bytes / 1e9:.2f} GB, the cache {cells:,} tokens",
    )
    return Ready(make_app(service, http, metrics, keys), engine, catalog, notes)


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
    """
    import uvicorn

    class Server(uvicorn.Server):
        """uvicorn's, whose signal also closes the engine's door."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            ready.engine.refuse()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        ready.app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=max(1, round(spec.drain_seconds)),
        timeout_keep_alive=30,
        limit_concurrency=4096,
    )
    server = Server(config)
    ready.engine.start()
    # uvicorn sends itself the signal again when all is done, for a handler that was there before.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    with _often_switched(), contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[sock])
    signal.signal(signal.SIGTERM, before)
    ready.engine.stop()


@contextlib.contextmanager
def _often_switched() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
