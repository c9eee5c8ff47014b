"""The Runtime whose answers vLLM computes. All of it runs in the server's event loop.

    submit ──► a task for each answer: adapter registered ──► stream of vLLM ──► deliver
                        ▲
              a thread exports it, vLLM loads it; once, however many wait for it

vLLM has the queue, the batch and the cache. Here are the bound on how much may wait, which adapters
it knows, and what an answer's end means: a task that is cancelled closes its connection, and vLLM
drops an answer whose connection is closed.

Longer than 300 lines: everything here is the state of one event loop.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2

from lorakit.errors import EngineError, InputError, LorakitError
from lorakit.serving.answers import CompletionEvent, Deliver, Observer, Prompt, StoppingError
from lorakit.serving.scheduler import QueueFullError
from lorakit.serving.spec import EngineSpec
from lorakit.serving.vllm.child import Child
from lorakit.serving.vllm.exports import Exports
from lorakit.serving.vllm.stream import StreamChunk, message_of, read, request

_log = logging.getLogger("lorakit.serving")
_REGISTERED = 512
"""Adapters that vLLM knows at once; the exported form of each takes room on the disk."""


@dataclass(eq=False)
class _Known:
    """An adapter that vLLM knows, or is about to."""

    ready: asyncio.Task[None]
    users: int = 0


@dataclass(eq=False)
class _ActiveRequest:
    """A completion that is being generated."""

    prompt: Prompt
    before: float
    answered: int = 0


class _RefusedError(InputError):
    """vLLM does not do what a request wishes."""


class VllmEngine:
    """Generates with vLLM.

    Args:
        child: a vLLM that can answer.
        exports: where it finds adapters.
        base: what requests for the base are sent to: its name, or the adapter that changes nothing.
        spec: limits.
        deliver: takes events, in the event loop.
        observer: called at each token.
        clock: seconds, monotonic.
        registered: adapters that vLLM may know at once.
    """

    def __init__(
        self,
        child: Child,
        exports: Exports,
        base: str,
        spec: EngineSpec,
        deliver: Deliver,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        registered: int = _REGISTERED,
    ) -> None:
        self.child, self.exports, self.base, self.spec = child, exports, base, spec
        self.deliver, self.clock, self.registered = deliver, clock, registered
        self.observer = observer or Observer()
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._running: set[_ActiveRequest] = set()
        # asyncio holds its tasks by weak references only.
        self._tasks: set[asyncio.Task[None]] = set()
        self._state = "running"
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="lorakit-exports")

    def start(self) -> None:
        """Nothing is left to do: vLLM runs already."""

    @property
    def load(self) -> tuple[int, int]:
        """Answers that are waiting or being written, and how many there may be."""
        return len(self._running), self.spec.max_queue + self.spec.max_running

    @property
    def alive(self) -> bool:
        """Whether vLLM runs."""
        return self.child.alive

    @property
    def failure(self) -> str | None:
        """How vLLM ended, if it did."""
        return self.child.failure

    @property
    def residents(self) -> int:
        """Adapters in vLLM's slots, which it fills before any adapter goes."""
        ready = sum(known.ready.done() for known in self._known.values())
        return min(ready, self.spec.slots)

    def submit(self, prompts: Sequence[Prompt], tag: Any) -> Callable[[], None]:
        """Ask for answers; they come through `deliver` with `tag`. Called in the event loop.

        Returns:
            A function that ends them all, in the event loop.

        Raises:
            QueueFullError: too many are waiting; nothing was taken.
            StoppingError: the server is about to stop, or vLLM has ended.
        """
        if self._state != "running" or not self.alive:
            raise StoppingError("the server is stopping")
        count, most = self.load
        if count + len(prompts) > most:
            raise QueueFullError(f"{count} answers are waiting or being written")
        tasks = [self._begin(_ActiveRequest(prompt, self.clock()), tag) for prompt in prompts]
        self._level()

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        return cancel

    def refuse(self) -> None:
        """Take no more requests; those taken go on."""
        self._state = "draining"

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests and end vLLM; the event loop has waited for what was running."""
        self.refuse()
        self._worker.shutdown(wait=False, cancel_futures=True)
        self.child.stop()

    def _begin(self, running: _ActiveRequest, tag: Any) -> asyncio.Task[None]:
        self._running.add(running)
        task = self._keep(self._answer(running, tag))

        def over(_: object) -> None:
            self._running.discard(running)
            self._level()

        task.add_done_callback(over)
        return task

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, running: _ActiveRequest, tag: Any) -> None:
        """One answer, from its adapter to its last event; every way to fail is an event too."""
        prompt = running.prompt
        try:
            async with (
                self._adapter(prompt) as model,
                contextlib.aclosing(self._pieces(prompt, model)) as pieces,
            ):
                async for event in self._events(running, pieces):
                    self.deliver([(tag, event)])
            return
        except _RefusedError as error:
            self.deliver([(tag, CompletionEvent(prompt.choice, str(error), finish="refused"))])
            return
        except LorakitError as error:
            why = str(error)
        except (httpx2.HTTPError, ValueError) as error:
            why = "vLLM has ended" if not self.alive else f"vLLM's answer broke off: {error!r}"
        except Exception:
            _log.exception("an answer failed")
            why = "the answer failed"
        self.deliver([(tag, CompletionEvent(prompt.choice, why, finish="error"))])

    async def _events(
        self, running: _ActiveRequest, pieces: AsyncIterator[StreamChunk]
    ) -> AsyncIterator[CompletionEvent]:
        """Events of pieces; the last one waits for what vLLM says of the whole answer after it."""
        prompt, last = running.prompt, None
        async for piece in pieces:
            self._count(running, piece)
            if piece.finish is not None:
                last = piece
            elif last is not None:
                self.observer.prompt(prompt.name, 0, piece.reused or 0)
                yield last.event(prompt.choice, piece.reused or 0)
                return
            elif piece.text or piece.tokens:
                yield piece.event(prompt.choice)
        if last is None:
            raise EngineError("vLLM's answer broke off")
        yield last.event(prompt.choice)

    async def _pieces(self, prompt: Prompt, model: str) -> AsyncGenerator[StreamChunk, None]:
        """vLLM's stream; leaving it closes the connection."""
        body = request(prompt, model)
        async with (
            self.child.client_in_loop() as client,
            client.sse("/v1/completions", method="POST", json=body, max_event_size=None) as source,
        ):
            if source.response.status_code != 200:
                refused = source.response.status_code == 400
                why = _refusal(await source.response.aread())
                raise _RefusedError(why) if refused else EngineError(why)
            async for event in source:
                if event.data == "[DONE]":
                    return
                yield read(json.loads(event.data), prompt.sampling.logprobs)

    def _count(self, running: _ActiveRequest, piece: StreamChunk) -> None:
        """Tell the observer of a piece's tokens."""
        if not piece.tokens:
            return
        prompt, now = running.prompt, self.clock()
        if not running.answered:
            self.observer.prompt(prompt.name, len(prompt.ids), 0)
        since = (now - running.before) / len(piece.tokens)
        for _ in piece.tokens:
            first = not running.answered
            self.observer.token(prompt.name, now - running.before if first else since, first=first)
            running.answered += 1
        running.before = now
        self._level()

    def _level(self) -> None:
        begun = [each for each in self._running if each.answered]
        tokens = sum(len(each.prompt.ids) + each.answered for each in begun)
        self.observer.level(len(begun), len(self._running) - len(begun), tokens)

    # --- adapters

    @contextlib.asynccontextmanager
    async def _adapter(self, prompt: Prompt) -> AsyncIterator[str]:
        """What the prompt's adapter is called in vLLM, which knows it within the block."""
        if not prompt.key:
            yield self.base
            return
        known = self._known.get(prompt.key)
        if known is None:
            known = self._known[prompt.key] = _Known(self._keep(self._register(prompt)))
            known.ready.add_done_callback(lambda task: self._registered(prompt.key, task))
        self._known.move_to_end(prompt.key)
        known.users += 1
        try:
            # Whoever goes away meanwhile does not end what others wait for.
            await asyncio.shield(known.ready)
            yield prompt.key
        finally:
            known.users -= 1
            self._trim()

    async def _register(self, prompt: Prompt) -> None:
        """Export an adapter and have vLLM load it.

        Raises:
            AdapterError: it cannot be read, or vLLM has no place for it.
            EngineError: vLLM refuses it.
        """
        assert prompt.load is not None
        if leaving := self._leaving.get(prompt.key):
            await asyncio.shield(leaving)
        began = self.clock()
        folder = await asyncio.get_running_loop().run_in_executor(self._worker, prompt.load)
        read_at = self.clock()
        await self._post(
            "/v1/load_lora_adapter", {"lora_name": prompt.key, "lora_path": str(folder)}
        )
        self.observer.loaded(read_at - began, self.clock() - read_at)

    def _registered(self, key: str, task: asyncio.Task[None]) -> None:
        """An adapter that could not be registered is tried again by the next who asks for it."""
        if task.cancelled() or task.exception() is not None:
            self._known.pop(key, None)

    def _trim(self) -> None:
        """Let vLLM forget what was not asked for in the longest time; never one in use."""
        idle = [key for key, known in self._known.items() if not known.users and known.ready.done()]
        for key in idle[: max(0, len(self._known) - self.registered)]:
            del self._known[key]
            self._leaving[key] = self._keep(self._forget(key))

    async def _forget(self, key: str) -> None:
        """Have vLLM forget an adapter, and remove its files."""
        try:
            await self._post("/v1/unload_lora_adapter", {"lora_name": key})
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._worker, self.exports.forget, key)
        except (EngineError, httpx2.HTTPError) as error:
            _log.warning("vLLM did not forget the adapter %s: %s", key[:12], error)
        finally:
            self._leaving.pop(key, None)

    async def _post(self, path: str, body: dict[str, str]) -> None:
        async with self.child.client_in_loop() as client:
            answer = await client.post(path, json=body)
        if answer.status_code != 200:
            raise EngineError(_refusal(answer.content))


def _refusal(content: bytes) -> str:
    """What a response that is no answer says."""
    try:
        return f"vLLM refuses: {message_of(json.loads(content))}"
    except ValueError:
        return f"vLLM refuses: {content[:500].decode('utf-8', 'replace')}"
