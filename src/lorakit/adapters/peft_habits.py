"""What peft itself makes of an adapter in its format that was not meant so, read off its source (0.21).

- It writes `rank_pattern` and `alpha_pattern` with their keys sorted, and the first key that hits counts: of
  keys that mean the same module another may be first once the file is read again.
- `add_weighted_adapter` writes no `rank_pattern`, be the ranks as they are.
- `merge_and_unload` adds an update to the tensor that a module holds, which is that of all modules tied to it.
- Up to 0.19 `layers_to_transform` counted the last number of a path, and counts the first since.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lorakit.lora.targets import first_hit, pattern_hits


def turned_patterns(
    config: Mapping[str, Any], ranks: Mapping[str, int]
) -> Iterator[tuple[str, str, bool]]:
    """Patterns whose keys overlap with unlike values: (key, why, whether peft refuses to load it).

    Args:
        config: of the adapter.
        ranks: of its pairs, by path.
    """
    for option in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(option) or {}
        for path in ranks:
            hits = [key for key in pattern if pattern_hits(key, [path])]
            if len({pattern[key] for key in hits}) > 1:
                why = (
                    f"{hits[0]!r} and {hits[1]!r} both mean {path}, the first in the file counts, and peft "
                    "sorts the keys when it saves: what was trained may have had the other"
                )
                yield option, why, option == "rank_pattern"
                break
    pattern, r = config.get("rank_pattern") or {}, config.get("r")
    unlike = [path for path, rank in ranks.items() if first_hit(pattern, path, r) != rank]
    if unlike and isinstance(r, int):
        why = (
            f"A of {unlike[0]} has rank {ranks[unlike[0]]} and the configuration says "
            f"{first_hit(pattern, unlike[0], r)}: peft's add_weighted_adapter leaves rank_pattern out; write "
            f"the ranks into it, and an alpha_pattern that keeps each scale {config.get('lora_alpha')}/{r}"
        )
        yield "rank_pattern", why, True


def tied_pairs(ranks: Mapping[str, int], model: Any) -> dict[str, tuple[str, ...]]:
    """Of the paths with a pair those whose weight other modules share, and these modules."""
    from lorakit.lora.sharing import tied_weights  # torch's, which listing and linting do without

    ties = tied_weights(dict(model.named_modules()))
    return {path: ties[path] for path in ranks if ties.get(path)}


def counts_last_number(version: object) -> bool | None:
    """Whether `layers_to_transform` of a file of this peft meant the last number of a path; None if unknown.

    >>> counts_last_number("0.19.1"), counts_last_number("0.21.2"), counts_last_number(None)
    (True, False, None)
    """
    found = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
    return None if found is None else (int(found[1]), int(found[2])) < (0, 20)
