"""What a model's attention modules ask for, read off the arguments that they call attention with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from lorakit.errors import ModelError
from lorakit.execution.spans import MaskFunction, Span

SPANS: "WeakKeyDictionary[nn.Module, Span]" = WeakKeyDictionary()
"""Which tokens a token sees in each attention module, by its mask; asked when a model is switched."""


@dataclass(frozen=True)
class AttentionSettings:
    """What a model's attention module asks for, beside queries, keys and values.

    Attributes:
        heads: query heads.
        scale: the s of softmax(s·Q Kᵀ).
        window: tokens that a token sees, itself included; None for all before it.
        softcap: scores become c·tanh(score / c); None for none.
        dropout: share of the probabilities set to zero.
        key_heads: heads of keys and values.
        width: of a head's queries and keys.
        value_width: of a head's values; None: as wide as its keys.
        chunk: a token sees those before it in its own chunk of so many tokens; None for all.
        function: the mask function, where window and chunk do not say what a token sees.
        sinks: (H,) one more logit of each head, without a value; None for none.
    """

    heads: int
    scale: float
    window: int | None
    softcap: float | None
    dropout: float
    key_heads: int
    width: int
    value_width: int | None = None
    chunk: int | None = None
    function: MaskFunction | None = None
    sinks: Tensor | None = field(default=None, compare=False)

    @property
    def span(self) -> Span:
        """Which tokens a token sees."""
        return Span(self.window, self.chunk, self.function)

    @property
    def cell_width(self) -> int:
        """Elements that a head's key, and its value, take in a KV cache: those of the wider one."""
        return max(self.width, self.value_width or self.width)

    def arguments(self) -> dict[str, Any]:
        """As `attend` takes them; a mask function is not among them."""
        return {
            "scale": self.scale,
            "window": self.window,
            "chunk": self.chunk,
            "softcap": self.softcap,
            "dropout": self.dropout,
            "sinks": self.sinks,
        }


def settings_of(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, arguments: Mapping[str, Any]
) -> AttentionSettings:
    """What a module asks for, read off the arguments that it calls its attention with.

    Args:
        module: the attention module.
        query: (1, H, T, D).
        key: (1, K, T, D).
        value: (1, K, T, E).
        arguments: its keyword arguments.

    Raises:
        ModelError: it asks for something that packed attention cannot do.
    """
    span = SPANS.get(module)
    causal = arguments.get("is_causal")
    causal = causal if causal is not None else getattr(module, "is_causal", True)
    sinks = arguments.get("s_aux")
    for wrong, reason in [
        # A mask that was asked has the last word.
        (span is None and not causal, "is not causal"),
        (sinks is not None and tuple(sinks.shape) != (query.shape[1],), "has sinks by token"),
        (query.shape[0] != 1 or key.shape[2] != query.shape[2], "uses a cache or a batch"),
    ]:
        if wrong:
            raise ModelError(f"{type(module).__name__} {reason}: its sequences cannot be packed")
    scaling = arguments.get("scaling")
    if span is None:
        span = Span(window=arguments.get("sliding_window"))
    return AttentionSettings(
        heads=query.shape[1],
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=span.window,
        softcap=arguments.get("softcap"),
        dropout=arguments.get("dropout") or 0.0,
        key_heads=key.shape[1],
        width=key.shape[3],
        value_width=value.shape[3],
        chunk=span.chunk,
        function=span.function,
        sinks=sinks,
    )
