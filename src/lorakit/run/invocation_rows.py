"""Rows for an adapter that acts from its invocation on: each has to hold it, before its last answer.

    q q q q <invocation> a a a </s>
    base alone |  base and pair

A row without it would teach nothing, since the pair acts on none of its tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorakit.data import TokenTable
from lorakit.errors import DataError
from lorakit.lora import LoraSpec
from lorakit.lora.invocation import Invocation


def starts_in(table: TokenTable, invocation: Sequence[int]) -> NDArray[np.int64]:
    """Where the last invocation of each row begins, counted within the row; -1 where there is none."""
    last_S = np.full(len(table), -1, dtype=np.int64)
    count, ids_N = len(invocation), table.ids_N
    places = len(ids_N) - count + 1
    if places < 1:
        return last_S
    found = np.ones(places, dtype=bool)
    for shift, token in enumerate(invocation):
        found &= ids_N[shift : shift + places] == token
    at = np.flatnonzero(found)
    row = np.searchsorted(table.offsets, at, side="right") - 1
    whole = at + count <= table.offsets[row + 1]
    at, row = at[whole], row[whole]
    np.maximum.at(last_S, row, at - table.offsets[row])
    return last_S


def check_invocations(
    tables: Sequence[TokenTable], invocation: Invocation, tokenizer: Any = None
) -> None:
    """See that every row has the invocation, and before its last answer.

    Args:
        tables: rows to train and to measure on.
        invocation: its tokens; () where the adapter acts on all tokens, and nothing is asked.
        tokenizer: says the text of the invocation, where there is one.

    Raises:
        DataError: a row has none, or has one in its answer; the first such row is named.
    """
    if not invocation or isinstance(invocation, str):
        return
    said = _said(invocation, tokenizer)
    for table in tables:
        starts = starts_in(table, invocation)
        lacking = np.flatnonzero(starts < 0)
        if len(lacking):
            raise DataError(
                f"{table.origin(int(lacking[0]))}: the row does not hold the invocation {said}, so that "
                f"the adapter would act on none of its tokens ({len(lacking)} of {len(table)} rows). Write "
                "it at the end of the prompt (--prompt '{question} …'), or take as --alora what the chat "
                "template writes before each answer"
            )
        for i, start in enumerate(starts):
            if start >= _last_answer(table[i].weight):
                raise DataError(
                    f"{table.origin(i)}: the answer itself holds the invocation {said}, and the adapter "
                    "would act from there on only: take an invocation that no answer has"
                )


def invocation_notes(
    table: TokenTable, held_out: TokenTable, spec: LoraSpec, tokenizer: Any
) -> list[str]:
    """What is said of a run whose adapter acts from a position on; nothing of any other.

    Raises:
        DataError: see `check_invocations`.
    """
    invocation = spec.alora
    check_invocations((table, held_out), invocation, tokenizer)
    if not invocation or isinstance(invocation, str) or not len(table):
        return []
    starts = starts_in(table, invocation)
    share = float(starts.sum()) / max(table.tokens, 1)
    notes = [
        f"The adapter acts from the last {_said(invocation, tokenizer)} of a row on; {share:.0%} of the "
        "tokens stand before it and are computed by the base alone."
    ]
    early = sum(int(table[i].weight[: start + 1].sum()) for i, start in enumerate(starts))
    if early:
        notes.append(
            f"{early:,} supervised tokens are answers of earlier turns, before the last invocation: they "
            "count in the loss, and nothing is learnt from them."
        )
    return notes


def silent_note(table: TokenTable, invocation: Invocation, tokenizer: Any) -> list[str]:
    """Rows that are measured although an adapter does not act on them."""
    if not invocation or isinstance(invocation, str):
        return []
    lacking = int((starts_in(table, invocation) < 0).sum())
    said = _said(invocation, tokenizer)
    if not lacking:
        return []
    return [
        f"{lacking} of {len(table)} rows do not hold {said}, the invocation of the adapter: the base alone "
        "answers them."
    ]


def _last_answer(weight: NDArray[np.uint8]) -> int:
    """Where the last run of supervised tokens begins."""
    supervised = np.flatnonzero(weight)
    gaps = np.flatnonzero(np.diff(supervised) > 1)
    return int(supervised[gaps[-1] + 1 if len(gaps) else 0])


def _said(invocation: Sequence[int], tokenizer: Any) -> str:
    numbers = ",".join(map(str, invocation))
    return numbers if tokenizer is None else f"{tokenizer.decode(list(invocation))!r} ({numbers})"
