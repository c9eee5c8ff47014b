"""An invocation: the tokens from whose last occurrence on an adapter acts, where it acts from a position on."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorakit.errors import ConfigError

if TYPE_CHECKING:
    from lorakit.lora.spec import LoraSpec

Invocation = str | tuple[int, ...]
"""A text that is not yet tokens, or token ids; () where there is none."""
_IDS = re.compile(r"\s*\[?\s*\d+(\s*,\s*\d+)*\s*\]?\s*")


def as_invocation(given: Any) -> Invocation:
    """What an option or a file gives as an invocation: numbers are token ids, all else is a text.

    >>> as_invocation("151644, 77091")
    (151644, 77091)
    >>> as_invocation("<|im_start|>assistant")
    '<|im_start|>assistant'

    Raises:
        ConfigError: it is neither.
    """
    if given is None or given == "":
        return ()
    if isinstance(given, str):
        return tuple(map(int, re.findall(r"\d+", given))) if _IDS.fullmatch(given) else given
    whole = isinstance(given, list | tuple) and all(
        isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in given
    )
    if not whole:
        raise ConfigError(f"alora must be a text or a list of token ids; it is {given!r}")
    return tuple(given)


def with_tokens(spec: "LoraSpec", tokenizer: Any) -> "LoraSpec":
    """The spec with its invocation as token ids; itself where it has ids or none.

    Raises:
        ConfigError: the text makes no token, or the tokenizer knows no such id.
    """
    if isinstance(spec.alora, str):
        ids = tuple(int(i) for i in tokenizer(spec.alora, add_special_tokens=False)["input_ids"])
        if not ids:
            raise ConfigError(f"alora is {spec.alora!r}, which the tokenizer makes no token of")
        spec = replace(spec, alora=ids)
    if beyond := [i for i in spec.alora if isinstance(i, int) and i >= len(tokenizer)]:
        raise ConfigError(f"alora names the token {beyond[0]}; the tokenizer has {len(tokenizer)}")
    return spec


def invocation_start(ids: Sequence[int], invocation: Sequence[int]) -> int | None:
    """Where the last invocation in these tokens begins; None where there is none.

    >>> invocation_start([7, 1, 2, 9, 1, 2, 3], (1, 2))
    4
    """
    wanted, count = list(invocation), len(invocation)
    for start in range(len(ids) - count, -1, -1):
        if ids[start] == wanted[0] and list(ids[start : start + count]) == wanted:
            return start
    return None
