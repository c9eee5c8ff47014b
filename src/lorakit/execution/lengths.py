"""From which lengths on a model may compute otherwise: the limits that its configuration names.

A sliding window, a chunk, a sparse choice of keys, a rope that changes past the length it was trained
for, a temperature that grows with the place of a token: rows that stay below such a limit do not show
it. Limits are known by the names of the configuration's fields, nested ones included.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_NAMES = re.compile(
    r"window(?!_layers)|chunk|original_max|floor_scale|index_topk|max_position|max_seq|seq_len"
    r"|n_positions|n_ctx|context_len|block_size|block_len|local_(?!experts)|compress|max_distance|num_buckets"
)
_POSITIONS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "context_length"),
    "max_target_positions",
)
UNNAMED = 1 << 20
"""Tokens that a model is taken to read whose configuration names no limit, as of recurrent ones."""
BEYOND = 6
"""Tokens of a trial past the largest limit that is crossed."""


def context_length(config: Any) -> int | None:
    """Tokens of the longest sequence that a configuration names, None where it names none.

    Args:
        config: of a transformers model. Of one with several towers that of text counts.
    """
    text = config.get_text_config()
    values = (getattr(text, name, None) for name in _POSITIONS)
    return next((v for v in values if isinstance(v, int) and v > 0), None)


def limits_of(config: Any) -> tuple[int, ...]:
    """Lengths that a configuration names, ascending: past each the model may compute otherwise.

    Args:
        config: of a transformers model. Of one with several towers that of text counts.
    """
    return tuple(sorted(set(_limits(config.get_text_config().to_dict(), False))))


def crossed(limits: tuple[int, ...], tried: int, longest: int) -> int | None:
    """The largest limit that rows cross for the first time, None where there is none.

    Args:
        limits: from `limits_of`.
        tried: the longest rows that were tried, or lie below the next limit.
        longest: tokens of the longest row to come.
    """
    # A window of w tokens already hides something from the token at place w; w + 1 tokens show it.
    return max((limit for limit in limits if tried <= limit < longest), default=None)


def _limits(value: Any, named: bool) -> Iterator[int]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _limits(each, named or bool(_NAMES.search(str(key))))
    elif isinstance(value, list | tuple):
        # One for each layer: few values differ.
        for each in {each for each in value if isinstance(each, int)} if named else ():
            yield from _limits(each, named)
    elif named and isinstance(value, int | float) and not isinstance(value, bool) and value > 1:
        yield int(value)
