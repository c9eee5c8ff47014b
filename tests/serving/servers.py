"""A server on a tiny base in a thread of this process, and adapters for it."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from engines import base, make_adapter

from families import tokenizer
from lorakit.adapters.store import Store
from lorakit.models import ModelSpec
from lorakit.models.fingerprint import identify
from lorakit.serving import server
from lorakit.serving.spec import EngineSpec, HttpSpec, RuntimeSpec

SPEC = EngineSpec(
    slots=6,
    slot_rank=8,
    cache_gb=0.02,
    max_running=8,
    max_queue=16,
    step_tokens=32,
    max_prompt=300,
    max_output=60,
)


def saved_base(folder: Path) -> Path:
    """The folder of a tiny llama with room for rank 32, and its tokenizer."""
    base("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def fill_store(folder: Path, model_folder: Path, scratch: Path) -> Store:
    """A store with adapters of ranks 4, 8 and 32, trained (as it were) on the base in a folder."""
    from lorakit.adapters.save import save_adapter
    from lorakit.lora import LoraSpec, attach, lora_layers
    from lorakit.models import load_model

    store = Store(folder)
    for name, rank in (("small", 4), ("middle", 8), ("large", 32)):
        model, _ = load_model(str(model_folder), dtype="float32")
        attach(model, LoraSpec(rank=rank, alpha=float(rank)))
        generator = torch.Generator().manual_seed(rank)
        for layer in lora_layers(model).values():
            layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) / rank**0.5)
        identity = identify(ModelSpec(str(model_folder)))
        save_adapter(model, scratch / name, identity=identity)
        store.add(scratch / name, name)
    return store


@dataclass
class Running:
    url: str
    ready: server.Ready

    @property
    def engine(self) -> Any:
        return self.ready.engine

    def rest(self, seconds: float = 10.0) -> None:
        """Wait until no request is left, and see that nothing was leaked."""
        until = time.monotonic() + seconds
        while self.engine.load[0] and time.monotonic() < until:
            time.sleep(0.01)
        assert self.engine.load[0] == 0
        assert self.engine.cache.busy == 0
        assert self.engine.pool.users == 0
        assert not self.engine.scheduler.running
        assert not self.engine.scheduler.waiting


@contextlib.contextmanager
def serving(
    model_folder: Path,
    store: Path,
    spec: EngineSpec = SPEC,
    adapters: Any = (),
    runtime: RuntimeSpec = RuntimeSpec(),  # noqa: B008 - frozen
    given: Any = (),
    **http: Any,
) -> Iterator[Running]:
    """A server, from the first request it can take until it has stopped."""
    listening = HttpSpec(port=0, **http)
    sock = server.listen(listening)
    try:
        ready = server.make_ready(
            *(ModelSpec(str(model_folder), dtype="float32"), spec, listening, runtime),
            store=store,
            adapters=adapters,
            given=given,
        )
        runner = server.make_server(ready, listening)
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [sock]}, daemon=True)
        ready.engine.start()
        thread.start()
        while not runner.started:
            time.sleep(0.005)
        try:
            yield Running(server.address(sock), ready)
        finally:
            runner.should_exit = True
            thread.join(10)
            ready.engine.stop()
    finally:
        sock.close()


__all__ = ["SPEC", "Running", "fill_store", "make_adapter", "saved_base", "serving"]
