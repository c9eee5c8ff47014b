"""`lorakit.serve` for Python and notebooks: a server beside the notebook, and a handle to close it."""

import atexit
import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lorakit.errors import ConfigError, EngineError, did_you_mean
from lorakit.extras import need
from lorakit.run.notebook.given import BASE, Adapter, Base, adapter_folders, config_of
from lorakit.serving.spec import EngineSpec, HttpSpec, RuntimeSpec

if TYPE_CHECKING:
    from lorakit.serving.server import Ready


class ServerHandle:
    """A server that is running, until `close` is called or the `with` block ends.

    Attributes:
        url: its address, such as http://127.0.0.1:8000; clients of OpenAI's API take url + "/v1".
        models: the names that a request may ask for, the base first.
        notes: what to say aloud about it.
    """

    def __init__(
        self, ready: "Ready", url: str, server: Any, sock: Any, on_close: contextlib.ExitStack
    ) -> None:
        self.url, self.notes = url, ready.notes
        self._ready, self._server, self._sock, self._on_close = ready, server, sock, on_close
        ready.engine.start()
        self._thread = threading.Thread(target=self._run, name="lorakit-server", daemon=True)
        self._thread.start()
        atexit.register(self._leave)

    def __repr__(self) -> str:
        state = "serving" if self._thread.is_alive() else "closed"
        return f"<{state} {self.models[0]} on {self.url}>"

    @property
    def models(self) -> list[str]:
        """The names that a request may ask for, the base first."""
        return [card.name for card in self._ready.catalog.list()]

    def wait(self) -> None:
        """Block until the server ends; Ctrl-C closes it.

        Raises:
            EngineError: what computes has ended by itself.
        """
        try:
            while self._thread.is_alive():
                self._thread.join(0.2)
        except KeyboardInterrupt:
            pass
        self.close()

    def close(self) -> None:
        """Refuse new requests, let running answers end (`drain_seconds`), and free the memory.

        Raises:
            EngineError: what computes had ended by itself.
        """
        self._ready.engine.refuse()
        self._server.should_exit = True
        self._thread.join()
        atexit.unregister(self._leave)
        failure = self._ready.engine.failure
        self._ready.engine.stop()
        self._sock.close()
        self._on_close.close()
        if failure is not None:
            raise EngineError(failure)

    def __enter__(self) -> "ServerHandle":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _leave(self) -> None:
        """The program ends and nobody has closed the server: answers that run end with it."""
        self._ready.engine.stop()
        self._server.should_exit = True
        self._thread.join(5.0)

    def _run(self) -> None:
        from lorakit.serving.server import often_switched

        with often_switched():
            self._server.run(sockets=[self._sock])


def serve(
    model: Base | None = None,
    *,
    adapters: Sequence[Adapter] = (),
    store: str | None = None,
    force: bool = False,
    port: int = 0,
    **options: Any,
) -> ServerHandle:
    """Serve a base and its adapters over HTTP, as OpenAI's API does, beside the running program.

    >>> import json, urllib.request
    >>> import lorakit
    >>> with lorakit.serve("tiny-model", store="my-store") as server:
    ...     answer = urllib.request.urlopen(server.url + "/v1/models").read()
    >>> [model["id"] for model in json.loads(answer)["data"]]
    ['tiny-model']

    Without `with`, keep the handle and call its `close`, or its `wait` to block until Ctrl-C.

    Args:
        model: a name, a folder, a `ModelSpec`, or a model that `load_model` loaded: its files are
            loaded anew, so that the server and the notebook never compute on the same tensors. By
            default the base that the adapters were trained on.
        adapters: folders, names in the store, or models with pairs attached, which are served as
            adapter-1, adapter-2, … by their place; every name of the store without any.
        store: its folder; the user's own by default.
        force: serve adapters although they were trained on another base.
        port: 0 takes a free one; the handle's `url` says which.
        **options: revision, device, dtype, trust_remote_code, and any option of `lorakit serve`:
            host, keys, slots, cache_gb, engine, …

    Returns:
        The running server.

    Raises:
        MissingExtraError: lorakit[serve] is not installed.
        InputError: an option is unknown, or the base, an adapter or the address cannot be used.
        EngineError: vLLM does not start.
    """
    need("serve", "lorakit.serve")
    from lorakit.serving import server as serving
    from lorakit.serving.base import base_to_serve, packing_to_serve

    specs = (EngineSpec, HttpSpec, RuntimeSpec)
    own = {f.name for spec in specs for f in fields(spec)}
    known = (*BASE, *sorted(own))
    for name in options:
        if name not in known:
            raise ConfigError(f"serve: unknown option {name!r}; {did_you_mean(name, known)}")
    base = {name: value for name, value in options.items() if name in BASE}
    spec = config_of("serve", model, base, BASE).model
    given = {**options, "port": port}
    engine = EngineSpec(**_of(EngineSpec, given))
    http = HttpSpec(**_of(HttpSpec, given))
    runtime = RuntimeSpec(**_of(RuntimeSpec, given))
    with contextlib.ExitStack() as stack:
        sock = serving.listen(http)
        stack.callback(sock.close)
        folders = stack.enter_context(adapter_folders(adapters))
        if model is None:
            spec = base_to_serve(spec, folders, store)
        notes: tuple[str, ...] = ()
        named = model is None or isinstance(model, str | Path)
        if named and "base_dtype" not in options and runtime.engine != "vllm":
            spec, notes = packing_to_serve(spec, folders, store)
        ready = serving.make_ready(
            *(spec, engine, http, runtime),
            adapters=folders,
            store=store,
            force=force,
            given=list(_of(EngineSpec, given)),
        )
        ready = replace(ready, notes=(*notes, *ready.notes))
        url = serving.address(sock)
        return ServerHandle(ready, url, serving.make_server(ready, http), sock, stack.pop_all())


def _of(spec: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that are fields of a spec."""
    assert is_dataclass(spec)
    return {f.name: options[f.name] for f in fields(spec) if f.name in options}
