"""One completion, given piece by piece as it is generated."""

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lorakit.data import Template
from lorakit.execution.ending import EndedAtExit, closed_at_exit
from lorakit.execution.generate import (
    continued_by_itself,
    decode,
    generation_settings,
)
from lorakit.execution.own_caches import SequencesApart
from lorakit.execution.own_decoding import own_arguments
from lorakit.execution.prompts import check_prompts, left_padded
from lorakit.execution.ready_generation import ready_to_generate, seeded


def stream(
    model: Any,
    tokenizer: Any,
    ids: Sequence[int],
    *,
    template: Template | None = None,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Continue one prompt and give its text piece by piece; arguments as for `generate`.

    A piece is always whole characters: bytes of an unfinished one wait for the rest. Closing the
    iterator early ends the computation.
    """
    settings = generation_settings(
        model, tokenizer, template, max_new_tokens, temperature, top_p, top_k
    )
    check_prompts(model, [ids], max_new_tokens, tokenizer)
    apart = continued_by_itself(model, tokenizer, len(ids) + max_new_tokens)
    return closed_at_exit(_stream(model, tokenizer, ids, settings, seed, tuple(stop), apart))


class _Tokens:
    """What transformers streams into: a queue of new token ids, None at the end."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self._prompt_seen:
            self.queue.put(value.flatten().tolist())
        self._prompt_seen = True

    def end(self) -> None:
        self.queue.put(None)


def _stream(
    model: Any,
    tokenizer: Any,
    ids: Sequence[int],
    settings: Any,
    seed: int | None,
    stop: tuple[str, ...],
    apart: SequencesApart | None,
) -> Generator[str, None, None]:
    from transformers import StoppingCriteriaList

    tokens, closed, failures = _Tokens(), threading.Event(), []
    ids_1T, mask_1T = left_padded([ids], tokenizer, model)
    extra: dict[str, Any] = {"streamer": tokens}
    if apart is not None:
        # transformers hands its streamer the prompt, and to a loop that is not its own no more.
        extra |= own_arguments(model, apart, ids_1T, tokens.put)
        settings.use_cache = False  # of transformers' making

    def is_closed(ids_BT: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((ids_BT.shape[0],), closed.is_set(), device=ids_BT.device)

    def work() -> None:
        try:
            model.generate(
                ids_1T,
                attention_mask=mask_1T,
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([is_closed]),
                **extra,
            )
            if apart is not None:
                tokens.end()
        except BaseException as error:  # handed to the reader, who raises it
            failures.append(error)
            tokens.end()

    worker = threading.Thread(target=work, daemon=True)
    with ready_to_generate(model, settings), seeded(seed, model):
        worker.start()
        ending = EndedAtExit(worker, closed.set)
        try:
            yield from _pieces(tokenizer, tokens, frozenset(settings.eos_token_id), stop)
        finally:
            ending.join()
    if failures:
        raise failures[0]


def _pieces(
    tokenizer: Any, tokens: _Tokens, ends: frozenset[int], stop: tuple[str, ...]
) -> Iterator[str]:
    """Text as soon as it is certain: whole characters that cannot be part of a stop string."""
    ids: list[int] = []
    sent = 0
    while (new := tokens.queue.get()) is not None:
        ids += [i for i in new if i not in ends]
        text = decode(tokenizer, ids)
        if cuts := [at for s in stop if (at := text.find(s)) >= 0]:
            yield text[sent : min(cuts)]
            return
        if text.endswith("\ufffd"):
            continue
        certain = len(text) - _held_back(text, stop)
        if certain > sent:
            yield text[sent:certain]
            sent = certain
    if rest := decode(tokenizer, ids)[sent:]:
        yield rest


def _held_back(text: str, stop: tuple[str, ...]) -> int:
    """How many of the last characters could be the beginning of a stop string."""
    return max(
        (n for s in stop for n in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:n])),
        default=0,
    )
