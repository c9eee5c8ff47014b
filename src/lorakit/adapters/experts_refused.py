"""Adapters with pairs on experts, where only linear layers are meant."""

from lorakit.adapters.pairs import StoredAdapter
from lorakit.errors import AdapterError


def refuse_experts(adapter: StoredAdapter, why: str, instead: str) -> None:
    """Stop where an adapter has pairs on experts.

    Raises:
        AdapterError: it has; the text says why that is no place for them, and what to do.
    """
    experts = [path for path, pair in adapter.pairs.items() if pair.experts]
    if experts:
        raise AdapterError(
            f"{adapter.source}: {experts[0]} holds a pair for each expert ({len(experts)} such "
            f"parameters), and {why}; {instead}"
        )
