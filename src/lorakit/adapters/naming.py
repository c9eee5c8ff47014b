"""Which names and patterns select exactly these paths, by peft's rules."""

import re
from collections.abc import Collection, Iterable, Sequence

from lorakit.lora.spec import ALL_LINEAR
from lorakit.lora.targets import matches


def is_named(wanted: tuple[str, ...] | str, path: str) -> bool:
    """Whether target_modules or exclude_modules of peft means the module at `path`."""
    if isinstance(wanted, str):
        return wanted == ALL_LINEAR or re.fullmatch(wanted, path) is not None
    return any(path == name or path.endswith("." + name) for name in wanted)


def describe_targets(paths: Sequence[str], modules: Collection[str]) -> tuple[str, ...] | str:
    """The shortest `target_modules` that selects exactly `paths` among all of a model's modules.

    Last names where they will do, full paths where not, and one regular expression where even
    a full path is the end of another module's.
    """
    wanted = set(paths)
    for names in (tuple(sorted({p.rsplit(".", 1)[-1] for p in paths})), tuple(paths)):
        if {path for path in modules if is_named(names, path)} == wanted:
            return names
    return exactly(paths)


def describe_parameters(paths: Sequence[str], parameters: Collection[str]) -> tuple[str, ...]:
    """The shortest `target_parameters` that mean exactly `paths` among all of a model's bare parameters.

    The last two names where they will do, else whole paths; in the order of `paths`.
    """
    ends = dict.fromkeys(".".join(path.split(".")[-2:]) for path in paths)
    meant = {path for path in parameters if any(matches(end, path) for end in ends)}
    return tuple(ends) if meant == set(paths) else tuple(paths)


def exactly(paths: Iterable[str]) -> str:
    """A `target_modules` that selects these paths in whatever model: a regular expression."""
    return "|".join(re.escape(path) for path in paths)
