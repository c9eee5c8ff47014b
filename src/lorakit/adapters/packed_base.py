"""How the weights of an adapter's base were held when it was trained, and how those at hand are."""

from collections.abc import Mapping
from typing import Any

from lorakit.adapters.provenance import Record
from lorakit.kernels.packed.counting import packing_of
from lorakit.models.spec import BASE_DTYPES, FULL, PACKED

_KEY = "base_dtype"


def with_packing(provenance: Mapping[str, Any] | None, model: Any) -> Mapping[str, Any] | None:
    """A provenance that says how the model's base is held, where that is not in full precision."""
    packing = packing_of(model)
    return provenance if packing is None else {**(provenance or {}), _KEY: packing}


def packing_note(record: Record | None, here: str | None) -> str | None:
    """A sentence where an adapter was trained beside a base that was held otherwise.

    Args:
        record: of the adapter; None of one that lorakit did not write, which says nothing of it.
        here: the packing of the base at hand; None or "full" for one in full precision.
    """
    if record is None:
        return None
    there, here = (record.provenance or {}).get(_KEY) or FULL, here or FULL
    if there == here:
        return None
    # A format that only files have: the built-in model's and a .gguf file's blocks stay when asked to.
    value = there if there in BASE_DTYPES else PACKED
    return (
        f"it was trained beside a base {_words(there)}, and this one is held {_words(here)}: scores may "
        f"differ a little from those measured then (--base-dtype {value} is what it was trained with)"
    )


def _words(held: str) -> str:
    return "in full precision" if held == FULL else f"in {held}"
