"""Adapters with pairs on experts, or with more than pairs, where only pairs on linear layers are meant."""

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


def refuse_beside(adapter: StoredAdapter, why: str, instead: str) -> None:
    """Stop where an adapter has modules, biases or rows of embeddings of its own beside its pairs.

    Raises:
        AdapterError: it has; the text says why that is no place for them, and what to do.
    """
    if adapter.beside:
        raise AdapterError(
            f"{adapter.source}: beside its pairs it holds {next(iter(adapter.beside))} "
            f"({len(adapter.beside)} such tensors), and {why}; {instead}"
        )
