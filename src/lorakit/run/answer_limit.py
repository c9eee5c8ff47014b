"""The most new tokens of an answer, where the user gives none and no reference answers are at hand."""

from dataclasses import replace
from pathlib import Path

from lorakit.adapters import AdapterInfo, read_adapter
from lorakit.config import RunConfig
from lorakit.run.named import Found, find_adapter
from lorakit.tasks.causal_lm import default_limit

RECORDED = "max_new_tokens"
"""Under this name a run records the limit that came from its reference answers."""


def answer_limit(config: RunConfig, adapter: AdapterInfo | None) -> int:
    """What the user gave; else what the adapter recorded of its reference answers; else 128.

    Args:
        config: as it was asked for.
        adapter: which one answers, or None for the base alone.
    """
    if config.output.max_new_tokens != "auto":
        return config.output.max_new_tokens
    recorded = (adapter.provenance or {}).get(RECORDED) if adapter is not None else None
    known = isinstance(recorded, int) and not isinstance(recorded, bool) and recorded > 0
    return int(recorded) if known else default_limit(None)  # type: ignore[arg-type]


def most_tokens(config: RunConfig) -> int:
    """The limit of a configuration that `with_answer_limit` made, or that has a number."""
    return answer_limit(config, None)


def with_answer_limit(config: RunConfig, adapter: str | Path | Found | None) -> RunConfig:
    """The configuration with `answer_limit` as its number.

    Args:
        config: as it was asked for.
        adapter: a folder or a name in the store, or None for the base alone.

    Raises:
        AdapterError, StoreError: there is no such adapter.
    """
    if config.output.max_new_tokens != "auto":
        return config
    info = None
    if adapter is not None:
        info = read_adapter(find_adapter(adapter, config.output.store).folder)
    output = replace(config.output, max_new_tokens=answer_limit(config, info))
    return replace(config, output=output)
