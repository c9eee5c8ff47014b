"""Between the event loop, where requests come in, and the engine's thread, where they are answered."""

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lorakit.errors import DataError
from lorakit.execution.tools.form import ToolForm
from lorakit.serving.answers import CompletionEvent, Prompt
from lorakit.serving.catalog import Catalog, Model, UnknownModelError
from lorakit.serving.http.problems import Problem, bad, busy
from lorakit.serving.http.prompts import Prompts
from lorakit.serving.http.schema import ChatRequest, CompletionRequest
from lorakit.serving.http.wishes import Wishes
from lorakit.serving.runtime import Runtime
from lorakit.serving.sampling import Sampling
from lorakit.serving.scheduler import QueueFullError
from lorakit.serving.spec import EngineSpec

T = TypeVar("T")


@dataclass(eq=False)
class Pending:
    """A request that is being answered: its events, and how to end it."""

    loop: asyncio.AbstractEventLoop
    choices: int
    prompt_tokens: int
    form: ToolForm | None = None
    events: asyncio.Queue[CompletionEvent | None] = field(default_factory=asyncio.Queue)
    cancel: Callable[[], None] = lambda: None
    answered: int = 0
    reused: int = 0

    async def __aiter__(self) -> AsyncIterator[CompletionEvent]:
        """Every event, until all choices have ended or the client has gone.

        Raises:
            Problem: an answer could not be given.
        """
        left = self.choices
        while left and (event := await self.events.get()) is not None:
            if event.finish == "refused":
                raise bad(event.text)
            if event.finish == "error":
                text = event.text or "the server is stopping"
                raise Problem(503, text, "server_error", after=5)
            self.answered += len(event.tokens)
            self.reused = max(self.reused, event.reused)
            left -= event.finish is not None
            yield event

    @contextlib.asynccontextmanager
    async def watched(self, receive: Callable[[], Any]) -> AsyncIterator[None]:
        """Within the block a client that goes away ends its request; so does leaving the block."""

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.cancel()
            self.events.put_nowait(None)

        watcher = asyncio.create_task(watch())
        try:
            yield
        finally:
            watcher.cancel()
            self.cancel()


class Service:
    """Requests in, events out.

    Args:
        catalog: the models.
        tokenizer: the base's.
        ends: token ids that end an answer.
        spec: limits.
        context: longest sequence that the model reads, in tokens.
        max_choices: most answers to one request.
        embeddings: tokens that the model has embeddings for.
    """

    def __init__(
        self,
        catalog: Catalog,
        tokenizer: Any,
        ends: frozenset[int],
        spec: EngineSpec,
        context: int,
        max_choices: int,
        embeddings: int,
    ) -> None:
        self.catalog, self.ends, self.spec = catalog, ends, spec
        self.context, self.max_choices = context, max_choices
        # The engine's thread decodes while this one encodes: each has a tokenizer of its own.
        self.tokenizer = copy.deepcopy(tokenizer)
        self.wishes = Wishes(self.tokenizer, embeddings)
        self.prompts = Prompts(self.tokenizer, ends)
        self.engine: Runtime | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="lorakit-prompts")

    def deliver(self, events: list[tuple[Any, CompletionEvent]]) -> None:
        """Take a step's events, in the engine's thread."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Pending, CompletionEvent]]] = {}
        for pending, event in events:
            by_loop.setdefault(pending.loop, []).append((pending, event))
        for loop, some in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(_dispatch, some)

    async def work(self, do: Callable[[], T]) -> T:
        """Do something that takes a while (files, templates, tokens) beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, do)

    async def ask(
        self, request: ChatRequest | CompletionRequest, visible: Callable[[str], bool]
    ) -> Pending:
        """Have a request answered.

        Args:
            request: of the client.
            visible: whether the client may use the model of this name.

        Raises:
            Problem: it is refused, now or for good.
            LorakitError: see `problems.as_problem`.
        """
        if not visible(request.model):
            raise UnknownModelError(f"there is no model {request.model!r} for this key")

        def prepare() -> tuple[ToolForm | None, list[int], list[Prompt]]:
            model = self.catalog.resolve(request.model, visible)
            asked = self.prompts.prompt_form(model, request)
            if isinstance(request, ChatRequest):
                prompts = [self.prompts.chat(model, request, asked)]
            else:
                prompts = [self.prompts.text(model, prompt, asked) for prompt in request.prompts]
            prompts = [self.wishes.shortened(ids, request, self._longest) for ids in prompts]
            form = self.prompts.form(model, request)
            ends = self.prompts.ends(model, request)
            wish = self.wishes.sampling(request, ends, form)
            made = [
                self._prompt(request, model, ids, wish, form, ends, i * request.n + k)
                for i, ids in enumerate(prompts)
                for k in range(request.n)
            ]
            return form, [len(ids) for ids in prompts], made

        form, lengths, choices = await self.work(prepare)
        if len(choices) > self.max_choices:
            raise bad(
                f"{len(choices)} completions are requested; at most {self.max_choices} to a request"
            )
        pending = Pending(asyncio.get_running_loop(), len(choices), sum(lengths), form)
        assert self.engine is not None
        try:
            pending.cancel = self.engine.submit(choices, pending)
        except QueueFullError as error:
            count, most = self.engine.load
            raise busy(str(error), 1 + 5 * count / most) from None
        return pending

    @property
    def _longest(self) -> int:
        """Tokens of the longest prompt that is read."""
        return min(self.spec.max_prompt, self.context - 1)

    def _prompt(
        self,
        request: ChatRequest | CompletionRequest,
        model: Model,
        ids: list[int],
        wish: Sampling,
        form: ToolForm | None,
        ends: frozenset[int],
        choice: int,
    ) -> Prompt:
        """One choice of a prompt, once its lengths are known to be allowed."""
        limit = request.max_tokens
        if isinstance(request, ChatRequest):
            limit = request.max_completion_tokens or limit
        if not ids:
            raise DataError("the prompt has no tokens")
        if len(ids) > self._longest:
            raise bad(f"the prompt has {len(ids)} tokens; at most {self._longest} are read")
        room = min(self.spec.max_output, self.context - len(ids))
        if limit is not None and limit > room:
            raise bad(
                f"{limit} tokens are requested; after a prompt of {len(ids)} at most {room} are given"
            )
        most = limit or room
        if wish.min_tokens > most:
            raise bad(f"min_tokens is {wish.min_tokens}, and the answer has at most {most} tokens")
        shown = form.specials if form is not None else frozenset()
        acts = model.on(ids)
        return Prompt(
            ids=ids,
            key=acts.key,
            load=acts.load,
            unadapted=acts.unadapted,
            name=model.name,
            most=most,
            ends=ends,
            stop=request.stops,
            stop_shown=request.include_stop_str_in_output,
            specials=shown if request.skip_special_tokens else None,
            sampling=wish,
            choice=choice,
        )


def _dispatch(events: list[tuple[Pending, CompletionEvent]]) -> None:
    for pending, event in events:
        pending.events.put_nowait(event)
