"""Prepare a base to be served by lorakit's own engine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lorakit.data import Template
from lorakit.execution.generate import end_tokens
from lorakit.execution.prompts import embedding_count
from lorakit.files.cache import Progress
from lorakit.files.wording import size
from lorakit.kernels.chosen import kernels_of
from lorakit.kernels.packed.counting import packing_of
from lorakit.models import ModelSpec
from lorakit.models.fingerprint import BaseIdentity
from lorakit.run.session import Session, open_base
from lorakit.serving.answers import Deliver, Observer
from lorakit.serving.cache import size_for
from lorakit.serving.catalog import Catalog, Holder
from lorakit.serving.engine import Engine
from lorakit.serving.forward import Forward, open_forward
from lorakit.serving.runtime import Runtime
from lorakit.serving.spec import EngineSpec
from lorakit.serving.thread import ComputeThread

MakeCatalog = Callable[[BaseIdentity, Template, Holder], Catalog]
"""A base's fingerprint, its template and where its adapters are held -> its models by name."""


@dataclass(frozen=True)
class PreparedBase:
    """A base that can be served, whatever computes with it.

    Attributes:
        catalog: its models.
        tokenizer: its tokenizer.
        ends: token ids that end an answer.
        context: longest sequence that it reads, in tokens.
        embeddings: tokens that it has embeddings for.
        begin: makes what computes, ready to answer.
        notes: sentences for the user.
        way: how steps are computed, in words.
    """

    catalog: Catalog
    tokenizer: Any
    ends: frozenset[int]
    context: int
    embeddings: int
    begin: Callable[[Deliver, Observer], Runtime]
    notes: tuple[str, ...]
    way: str


def open_own(
    model: ModelSpec, spec: EngineSpec, make_catalog: MakeCatalog, progress: Progress
) -> PreparedBase:
    """Load a base, and lay out slots and cache."""
    thread = ComputeThread()

    def load() -> tuple[Session, int, Forward]:
        session = open_base(model, progress=progress)
        longest = min(session.context_length, spec.max_prompt + spec.max_output)
        return session, size_for(longest), open_forward(session.model, spec, longest)

    try:
        session, largest, forward = thread.call(load)
    except Exception:
        thread.end()
        raise
    catalog = make_catalog(session.identity, session.template, forward.bank)
    catalog.held = packing_of(session.model)  # what the option does not say: a folder's own packing
    slots = (
        f"{len(catalog.list()) - 1} adapters; {spec.slots} slots of rank {spec.slot_rank} hold "
        f"{size(spec.slots * forward.bank.slot_bytes)}, the cache {forward.room.positions:,} tokens"
    )
    kernels, name = kernels_of(session.model).line, type(session.model).__name__
    notes = (slots, *expert_notes(forward), kernels, *way_notes(forward, name))
    return PreparedBase(
        catalog,
        session.tokenizer,
        frozenset(end_tokens(session.model, session.tokenizer)),
        session.context_length,
        embedding_count(session.model),
        lambda deliver, observer: Engine(
            *(forward, session.tokenizer, spec, largest, deliver, observer), thread=thread
        ),
        notes,
        forward.blocks.way,
    )


def expert_notes(forward: Forward) -> tuple[str, ...]:
    """What pairs on a mixture's experts cost here; nothing where a base has no experts of its kind."""
    if not forward.bank.expert_bytes:
        return ()
    way = "in the step of all others" if forward.experts.is_together else "a step for each adapter"
    return (
        f"pairs on experts are computed {way}, and take up to {size(forward.bank.expert_bytes)} beside "
        "each slot of an adapter that has them",
    )


def way_notes(forward: Forward, name: str) -> tuple[str, ...]:
    """What is to be said of how a base is computed: nothing where all sequences share each step.

    Args:
        forward: the prepared base.
        name: of the model's class.
    """
    if forward.blocks.states is None:
        return ()
    return (
        f"{name} is computed {forward.blocks.way}: a forward pass for each sequence and step; "
        f"{forward.room.sequences} sequences are kept, running and past",
    )
