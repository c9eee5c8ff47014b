"""Patterns -> module paths: names, globs, regexes, layer ranges."""

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from lorakit.errors import ConfigError, did_you_mean

Value = TypeVar("Value")


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern (a name, a glob, or ``re:`` and a regular expression) means this path.

    >>> matches("mlp.up_proj", "model.layers.0.mlp.up_proj"), matches("proj", "a.up_proj")
    (True, False)
    >>> matches("*.layers.1?.*", "model.layers.12.mlp"), matches(r"re:.*\\.[qk]_proj", "l.0.q_proj")
    (True, True)

    Raises:
        ConfigError: the regular expression does not compile.
    """
    if pattern.startswith("re:"):
        return _compiled(pattern[3:]).fullmatch(path) is not None
    if any(mark in pattern for mark in "*?["):
        return fnmatchcase(path, pattern)
    return path == pattern or path.endswith("." + pattern)


def first_hit(pattern_map: Mapping[str, Value], path: str, default: Value) -> Value:
    """peft's rule for rank_pattern and alpha_pattern: ``(.*\\.)?(key)$``, the first key that hits."""
    for key, value in pattern_map.items():
        if _compiled(rf"(.*\.)?({key})$").match(path):
            return value
    return default


def pattern_hits(key: str, paths: Iterable[str]) -> bool:
    """Whether a key of a rank_pattern or alpha_pattern means any of these paths."""
    return any(_compiled(rf"(.*\.)?({key})$").match(path) for path in paths)


def check_patterns(maps: Mapping[str, Mapping[str, Any]], chosen: Collection[str]) -> None:
    """See that every key of rank_pattern and alpha_pattern means one of the chosen paths.

    Raises:
        ConfigError: one means none.
    """
    for option, pattern_map in maps.items():
        for key in pattern_map:
            if not pattern_hits(key, chosen):
                names = {path.rsplit(".", 1)[-1] for path in chosen}
                raise ConfigError(
                    f"{option} {key!r} means none of the targets; {did_you_mean(key, names)}"
                )


def block_of(path: str) -> int | None:
    """The number of the block a path lies in: its first component that is a number.

    >>> block_of("model.layers.7.mlp.experts.2.up_proj"), block_of("lm_head")
    (7, None)
    """
    return next((int(part) for part in path.split(".") if part.isdecimal()), None)


def layer_range(text: str) -> frozenset[int]:
    """'0-5,8' -> {0, 1, 2, 3, 4, 5, 8}; both ends count.

    Raises:
        ConfigError: the text is not of that form.
    """
    chosen: set[int] = set()
    for part in text.replace(" ", "").split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not found or (found[2] and int(found[2]) < int(found[1])):
            raise ConfigError(f"layers is {text!r}; write block numbers and ranges, such as 0-5,8")
        chosen.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return frozenset(chosen)


def _compiled(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise ConfigError(f"{expression!r} is not a regular expression: {error}") from None
