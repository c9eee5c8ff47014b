"""Whether packed sequences give what each gives alone, and how: the first of a few routes that is right."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lorakit.execution import attention
from lorakit.execution.apart import computed_alone
from lorakit.execution.by_sequence import MixingModule, split
from lorakit.execution.equals import chooses_among_equals
from lorakit.execution.facts import Facts
from lorakit.execution.mixing import mixing_modules
from lorakit.execution.modes import evaluating
from lorakit.execution.own import let_count, own_logits
from lorakit.execution.trial import (
    FAILURES,
    LENGTHS,
    computed,
    places_compared,
    positions,
    random_ids,
    row_logits,
    same_answer,
    same_computed,
)
from lorakit.execution.trial_memory import keep, recall
from lorakit.kernels.layout import layout
from lorakit.lora.acting import everywhere

_log = logging.getLogger("lorakit.execution")


@dataclass(frozen=True)
class _Route:
    """A way to run packed sequences.

    Attributes:
        switched: attention goes through lorakit's function.
        split: modules that mix the sequences get them apart.
        counting: those that count the tokens of the row are among them.
        counts: the model finds the places of tokens itself, or else is given them.
        together: the sequences of a module come in rectangles, or else one at a time.
    """

    switched: bool = True
    split: bool = False
    counting: bool = False
    counts: bool = False
    together: bool = True


_ROUTES = (
    _Route(),
    *(_Route(switched, split=True) for switched in (True, False)),
    *(
        _Route(switched, split=True, counting=True, counts=counts)
        for counts in (False, True)
        for switched in (True, False)
    ),
)


@torch.no_grad()
def try_packing(model: Any, facts: Facts) -> bool:
    """Whether two packed sequences give, up to rounding, the logits and the gradients of each alone,
    and the second's do not change when the first's tokens do.

    Attention goes through lorakit's function where it can. Where a recurrence, a convolution or an
    attention of the model's own still mixes the sequences, the modules that do so are found and get
    them apart, together in rectangles or else one at a time (by_sequence.py). The route that is right
    is kept for the next process (trial_memory.py), which takes it untried.

    Args:
        model: a causal LM.
        facts: of the model; which modules get the sequences apart is noted there.
    """
    question = f"packed route, rows of {facts.lengths} tokens"
    known = recall(model, question)
    with evaluating(model), everywhere(model):
        if known == {} or (isinstance(known, dict) and _taken(model, facts, known)):
            return bool(known)
        for first in _routes(model, facts):
            for route in _opened(model, facts, first):
                if _right(model, facts, route):
                    keep(model, question, asdict(route))
                    return True
                _leave(model, facts)
        let_count(model, False)
    keep(model, question, {})
    return False


def _routes(model: Any, facts: Facts) -> Sequence[_Route]:
    """Those that may be right: none where only a row by itself makes the same choices."""
    longest = max(facts.lengths)
    return () if longest > max(LENGTHS) and chooses_among_equals(model, longest) else _ROUTES


def _taken(model: Any, facts: Facts, known: dict[str, Any]) -> bool:
    """Take the route that was right before; whether it is one that there is."""
    for first in _ROUTES:
        for together in (True, False):
            route = replace(first, together=together)
            if asdict(route) == known:
                for each in _opened(model, facts, first):
                    if each == route:
                        if route.switched:
                            attention.switch(model)
                        return True
                    _leave(model, facts)
    return False


def _opened(model: Any, facts: Facts, route: _Route) -> Iterator[_Route]:
    """The route, and its slower sister: each time the model is made so before it is given."""
    let_count(model, route.counts)
    if not route.split:
        yield route
        return
    mixing = _mixing(model, switched=route.switched, counting=route.counting)
    if not mixing and (route.switched or route.counting):
        return
    for together in (True, False) if mixing else (True,):
        facts.handles = split(mixing, together=together)
        facts.by_sequence = tuple(each.path for each in mixing)
        yield replace(route, together=together)


def _leave(model: Any, facts: Facts) -> None:
    """Let modules get whole rows again."""
    for handle in facts.handles:
        handle.remove()
    facts.handles, facts.by_sequence = [], ()


def _right(model: Any, facts: Facts, route: _Route) -> bool:
    if not route.split:
        return _packs(model, "packed", facts.lengths)
    way, longest = "packed, mixing modules by sequence", max(facts.lengths)
    # In a rectangle of two like lengths the shorter one is padded past every limit, too.
    tried = [facts.lengths, (longest - 1, longest)] if route.together else [facts.lengths]
    return all(_packs(model, way, each, switched=route.switched) for each in tried)


def _mixing(model: Any, *, switched: bool, counting: bool) -> list[MixingModule]:
    """The modules that mix the sequences of a packed row; [] where they are not found."""
    # Tokens are known by their number: no size of the model may be the same.
    sizes = {size for parameter in model.parameters() for size in parameter.shape}
    second = next(n for n in range(24, 10**6) if 13 + n not in sizes)
    lengths = (13, second)
    ids_T, where = random_ids(model, sum(lengths)), layout(lengths, model.device)
    # Places that begin again let transformers hide one sequence from another in attention that is
    # not switched, at the cost of the whole row's square: as one sequence those modules are found.
    places = [torch.arange(n) for n in (lengths if switched else (sum(lengths),))]
    positions_T = torch.cat(places).to(ids_T.device)
    keep_L = torch.arange(sum(lengths), device=ids_T.device)

    def run() -> None:
        own_logits(model, ids_T, positions_T, where, keep_L)

    try:
        if switched:
            attention.switch(model)
        return mixing_modules(model, run, lengths, where, counting=counting)
    except FAILURES as error:
        _log.info("%s, mixing modules: %s", type(model).__name__, error)
        return []
    finally:
        attention.switch_back(model)


def _packs(model: Any, way: str, lengths: tuple[int, int], *, switched: bool = True) -> bool:
    """Whether the model packs as it is now; if so its attention stays switched, where it is to be."""
    first = lengths[0]
    ids = random_ids(model, 2, sum(lengths))
    ids[1, first:] = ids[0, first:]
    places, where = positions(lengths).to(ids.device), layout(lengths, ids.device)
    keep_L = places_compared(lengths).to(ids.device)
    own_L = places_compared(lengths[:1]).to(
        ids.device
    )  # of the first sequence, the first of keep_L

    def packed(row: int) -> Tensor:
        if switched:
            attention.switch(model)
        return own_logits(model, ids[row], places, where, keep_L)

    attention.switch_back(model)
    alone = computed_alone(model, ids[0], lengths, keep_L)
    right = same_computed(model, way, lambda: computed(model, lambda: packed(0)), alone)
    right = right and same_answer(
        model,
        f"{way}, after another sequence",
        lambda: packed(1)[len(own_L) :],
        lambda: packed(0)[len(own_L) :],
        close=1e-6,
    )
    right = right and same_answer(
        model,
        "attention as loaded, through lorakit's",
        lambda: row_logits(model, ids[0, :first]).index_select(0, own_L),
        alone.answer[: len(own_L)],
        close=1e-5,  # with a gradient torch may take another kernel
    )
    if not right:
        attention.switch_back(model)
    return right
