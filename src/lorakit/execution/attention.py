"""lorakit's attention inside any transformers model: one function, registered once.

A model that is made ready attends through ``lorakit_sdpa`` (or another name, by what it was loaded
with). Where the sequences of a call lie, or which cells of a KV cache they own, travels as a keyword
argument of the model's forward, and not as a context variable, because activation checkpointing runs
a layer again in the backward, long after a context has gone. A call without that argument attends as
the model was loaded to, masks included: the model stays an ordinary one for everybody else.
"""

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lorakit.errors import ModelError
from lorakit.kernels.attention import attend
from lorakit.kernels.layout import Layout, layout
from lorakit.models.quiet import quiet

KEYWORD = "lorakit_call"
_PREFIX = "lorakit_"
# A call that needs no mask, because its attention knows where each sequence lies. Masks are built at
# the top of a model's forward, never while a layer is recomputed, so a context variable will do.
_maskless: ContextVar[bool] = ContextVar("lorakit_maskless", default=False)


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
    """

    heads: int
    scale: float
    window: int | None
    softcap: float | None
    dropout: float
    key_heads: int
    width: int

    def arguments(self) -> dict[str, Any]:
        """As `attend` takes them."""
        return {
            "scale": self.scale,
            "window": self.window,
            "softcap": self.softcap,
            "dropout": self.dropout,
        }


def settings_of(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, arguments: dict[str, Any]
) -> AttentionSettings:
    """What a module asks for, read off the arguments that it calls its attention with.

    Args:
        module: the attention module.
        query: (1, H, T, D).
        key: (1, K, T, D).
        mask: of the call.
        arguments: its keyword arguments.

    Raises:
        ModelError: it asks for something that packed attention cannot do.
    """
    causal = arguments.get("is_causal")
    causal = causal if causal is not None else getattr(module, "is_causal", True)
    for wrong, reason in [
        (not causal, "is not causal"),
        (arguments.get("s_aux") is not None, "has attention sinks"),
        (arguments.get("position_bias") is not None, "adds a position bias"),
        (mask is not None, "brings a mask"),
        (query.shape[0] != 1 or key.shape[2] != query.shape[2], "uses a cache or a batch"),
    ]:
        if wrong:
            raise ModelError(f"{type(module).__name__} {reason}: its sequences cannot be packed")
    scaling = arguments.get("scaling")
    return AttentionSettings(
        heads=query.shape[1],
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=arguments.get("sliding_window"),
        softcap=arguments.get("softcap"),
        dropout=arguments.get("dropout") or 0.0,
        key_heads=key.shape[1],
        width=key.shape[3],
    )


@dataclass(frozen=True, eq=False)
class PackedCall:
    """Packed sequences: attention within each of them."""

    layout: Layout

    def run(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        arguments: dict[str, Any],
    ) -> Tensor:
        """(T, H, D) from (1, H, T, D), (1, K, T, D) twice."""
        settings = settings_of(module, query, key, mask, arguments)
        q_THD, k_TKD, v_TKD = (x[0].transpose(0, 1) for x in (query, key, value))
        return attend(q_THD, k_TKD, v_TKD, self.layout, **settings.arguments())


@dataclass(frozen=True, eq=False)
class ObservedCall(PackedCall):
    """A packed call that notes what each attention module asks for, in the order they run."""

    settings: dict[nn.Module, AttentionSettings] = field(default_factory=dict)
    widths: dict[nn.Module, int] = field(default_factory=dict)

    def run(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        arguments: dict[str, Any],
    ) -> Tensor:
        """As `PackedCall.run`."""
        self.settings[module] = settings_of(module, query, key, mask, arguments)
        self.widths[module] = value.shape[-1]
        return super().run(module, query, key, value, mask, arguments)


def _attention(
    loaded: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls: (1, H, T, D) in, (1, T, H, D) out where a call of ours is given."""
    call = arguments.pop(KEYWORD, None)
    if call is not None:
        return call.run(module, query, key, value, attention_mask, arguments)[None], None
    if loaded == "eager":
        own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if own is None:
            raise ModelError(f"{type(module).__name__} has no attention of its own to go back to")
    else:
        own = ALL_ATTENTION_FUNCTIONS[loaded]
    answer: tuple[Tensor, Tensor | None] = own(
        module, query, key, value, attention_mask, **arguments
    )
    return answer


def _mask(loaded: str, *args: Any, **kwargs: Any) -> Any:
    """The mask that the loaded attention wants; none for a call that needs none."""
    if _maskless.get():
        return None
    return ALL_MASK_ATTENTION_FUNCTIONS[loaded](*args, **kwargs)


@contextlib.contextmanager
def maskless() -> Iterator[None]:
    """Within the block transformers builds no masks for models that were switched."""
    token = _maskless.set(True)
    try:
        yield
    finally:
        _maskless.reset(token)


def is_switched(model: Any) -> bool:
    """Whether the model attends through lorakit's function."""
    return str(model.config._attn_implementation).startswith(_PREFIX)


def switch(model: Any) -> None:
    """Let the model attend through lorakit's function from now on, if it does not yet.

    Raises:
        ModelError: its attention cannot be switched.
    """
    loaded = str(model.config._attn_implementation)
    if loaded.startswith(_PREFIX):
        return
    name = _PREFIX + loaded
    if name not in AttentionInterface._global_mapping:
        AttentionInterface.register(name, partial(_attention, loaded))
        if loaded in AttentionMaskInterface._global_mapping:
            AttentionMaskInterface.register(name, partial(_mask, loaded))
    _set(model, name)


def switch_back(model: Any) -> None:
    """Let the model attend as it was loaded to."""
    if is_switched(model):
        _set(model, str(model.config._attn_implementation).removeprefix(_PREFIX))


def _set(model: Any, name: str) -> None:
    with quiet():
        model.set_attn_implementation(name)
    if str(model.config._attn_implementation) != name:
        raise ModelError(f"the attention of {type(model).__name__} cannot be switched")


@torch.no_grad()
def observe(model: Any) -> ObservedCall:
    """What each attention module asks for in the model's present mode, by running two tokens.

    Raises:
        ModelError: the attention cannot be switched, or asks for what cannot be done.
    """
    switch(model)
    where = layout((2,), model.device)
    call = ObservedCall(where)
    with maskless():
        model.base_model(
            input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device),
            position_ids=torch.arange(2, device=model.device)[None],
            use_cache=False,
            **{KEYWORD: call},
        )
    return call
