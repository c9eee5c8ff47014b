"""Which training rows are held out: a seeded share; rows with the same prompt stay on one side."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lorakit.data.shapes import Example


def prompt_key(example: Example, seed: int) -> int:
    """A seeded 64-bit hash of the prompt: the same for every row with the same prompt."""
    prompt = [example.prompt, (example.messages or ())[: example.answer_at], example.text]
    text = json.dumps(prompt, ensure_ascii=False, sort_keys=True, default=str)
    key = hashlib.blake2b(text.encode(), digest_size=8, key=str(seed).encode())
    return int.from_bytes(key.digest(), "little")


def held_out(
    keys: Sequence[int] | NDArray[np.uint64], share: float, most: int | None = None
) -> NDArray[np.bool_]:
    """Which of n rows to hold out, bool (n,), given each row's `prompt_key`.

    Holds out about ``share * n`` rows (at least one, at most `most`), in the order of their keys,
    which the seed makes random. Rows with equal keys stay on the same side, so that no held-out
    prompt was seen in training. Never holds out all rows: where all have the same prompt, none is
    held out.
    """
    n = len(keys)
    wanted = min(max(1, round(share * n)), n if most is None else most) if share > 0 else 0
    unique, group_of, sizes = np.unique(
        np.array(keys, dtype=np.uint64), return_inverse=True, return_counts=True
    )
    if wanted == 0 or len(unique) < 2:
        return np.zeros(n, dtype=np.bool_)
    chosen = np.zeros(len(unique), dtype=np.bool_)
    taken = 0
    for group, size in enumerate(sizes.tolist()):
        if taken + size <= wanted:
            chosen[group] = True
            taken += size
        if taken == wanted:
            break
    if not taken:
        chosen[np.argmin(sizes)] = True
    if chosen.all():
        chosen[-1] = False
    return np.asarray(chosen[group_of], dtype=np.bool_)
