"""One conversation with several adapters at once, in this process and without a server."""

import queue
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorakit.data import DataSpec, Example, PromptForm, encode_prompt
from lorakit.data.ends import end_of_turn
from lorakit.errors import DataError, LorakitError
from lorakit.execution.generate import end_tokens
from lorakit.execution.prompts import embedding_count
from lorakit.files.cache import Progress, no_progress
from lorakit.models import ModelSpec
from lorakit.run.named import find_adapter
from lorakit.run.session import open_base
from lorakit.serving.answers import CompletionEvent, Prompt
from lorakit.serving.cache import size_for
from lorakit.serving.catalog import Catalog, Model
from lorakit.serving.engine import Engine
from lorakit.serving.forward import open_forward
from lorakit.serving.sampling import Sampling
from lorakit.serving.spec import EngineSpec
from lorakit.serving.thread import ComputeThread

BASE = "base"
_LONGEST = 4096
"""Tokens of a conversation, answers included."""
_CACHE_GB = 4.0  # of which a small model's conversation touches little


class Talk:
    """Several adapters that answer the same questions; each remembers its own answers.

    Args:
        model: the base.
        adapters: folders or names in the store; "base" for the base alone.
        data: template and system message.
        store: where names are looked up; the user's own by default.
        most: longest answer, in tokens.
        force: use adapters although they were trained on another base.
        progress: called during a download of the built-in model.
        prompt_template: whether questions are put through the prompt template that an adapter
            recorded.

    Raises:
        InputError: the base or an adapter cannot be used.
    """

    def __init__(
        self,
        model: ModelSpec,
        adapters: Sequence[str],
        data: DataSpec | None = None,
        *,
        store: str | Path | None = None,
        most: int = 512,
        force: bool = False,
        progress: Progress = no_progress,
        prompt_template: bool = True,
    ) -> None:
        stored = [None if name == BASE else find_adapter(name, store) for name in adapters]
        thread = ComputeThread()
        session = thread.call(lambda: open_base(model, data, progress=progress))
        self.tokenizer, self.most, self.names = session.tokenizer, most, tuple(adapters)
        self._ends = frozenset(end_tokens(session.model, session.tokenizer))
        self._embeddings = embedding_count(session.model)
        context = min(session.context_length, _LONGEST)
        spec = EngineSpec(
            slots=4 * len(adapters), cache_gb=_CACHE_GB, max_prompt=context, max_output=most
        )
        largest = size_for(context)
        forward = thread.call(lambda: open_forward(session.model, spec, context))
        folders = {str(i): each.folder for i, each in enumerate(stored) if each is not None}
        catalog = Catalog(
            BASE, session.identity, session.template, forward.bank, folders=folders, force=force
        )
        self._models = [
            catalog.resolve(BASE if each is None else str(i)) for i, each in enumerate(stored)
        ]
        if data is not None and data.template != "auto":
            self._models = [replace(one, template=session.template) for one in self._models]
        elif data is not None:
            self._models = [
                replace(one, template=one.template.changed(data.system, data.template_options))
                for one in self._models
            ]
        if not prompt_template:
            self._models = [replace(one, form=PromptForm()) for one in self._models]
        self._turns: list[list[dict[str, str]]] = [[] for _ in adapters]
        self._events: queue.SimpleQueue[tuple[Any, CompletionEvent]] = queue.SimpleQueue()
        self._engine = Engine(
            *(forward, session.tokenizer, spec, largest, self._deliver), thread=thread
        )
        self._engine.start()
        self._context = context

    @property
    def forms(self) -> tuple[PromptForm, ...]:
        """How each adapter's prompts are made of a question."""
        return tuple(model.form for model in self._models)

    def forget(self) -> None:
        """Start the conversation over."""
        self._turns = [[] for _ in self._models]

    def ask(self, text: str, sampling: Sampling) -> Iterator[tuple[int, str]]:
        """Put a question to all; pieces of answers as they come, each with whose it is.

        Closing the iterator early ends all answers.

        Raises:
            LorakitError: an answer could not be given.
        """
        prompts = [self._prompt(i, model, text, sampling) for i, model in enumerate(self._models)]
        answers = ["" for _ in prompts]
        cancels = [self._engine.submit([prompt], i) for i, prompt in enumerate(prompts)]
        left = len(prompts)
        try:
            while left:
                number, event = self._events.get()
                if event.finish == "error":
                    raise LorakitError(f"{self.names[number]}: {event.text}")
                answers[number] += event.text
                left -= event.finish is not None
                yield number, event.text
        finally:
            for cancel in cancels:
                cancel()
        for turns, answer in zip(self._turns, answers, strict=True):
            turns += [
                {"role": "user", "content": text},
                {"role": "assistant", "content": answer.strip()},
            ]

    def close(self) -> None:
        """End the engine."""
        self._engine.stop()

    def _deliver(self, events: list[tuple[Any, CompletionEvent]]) -> None:
        for event in events:
            self._events.put(event)

    def _prompt(self, number: int, model: Model, text: str, sampling: Sampling) -> Prompt:
        if model.template.kind == "raw":
            example = model.form.typed(text, self.names[number])
        else:
            turns = [*self._turns[number], {"role": "user", "content": text}]
            empty = {"role": "assistant", "content": ""}
            written = model.form.turns(turns, self.names[number])
            example = Example(origin="chat", messages=(*written, empty))
        ids = [int(i) for i in encode_prompt(example, self.tokenizer, model.template)]
        if (id := max(ids)) >= self._embeddings:
            token = self.tokenizer.convert_ids_to_tokens(id)
            raise DataError(
                f"the question has the token {id} ({token!r}), and the model has embeddings for "
                f"{self._embeddings} tokens: leave that text out"
            )
        if len(ids) + self.most > self._context:
            raise DataError(
                f"the conversation has {len(ids)} tokens, and an answer may have {self.most}: "
                f"{self._context} are the most; /new starts over"
            )
        acts = model.on(ids)
        return Prompt(
            ids,
            acts.key,
            acts.load,
            self.names[number],
            self.most,
            self._ends.union(end_of_turn(self.tokenizer, model.template)),
            (),
            sampling,
            unadapted=acts.unadapted,
        )
