"""lorakit's attention inside any transformers model: one function, registered once.

A model that is made ready attends through ``lorakit_sdpa`` (or another name, by what it was loaded
with). Where the sequences of a call lie, or which cells of a KV cache they own, travels as a keyword
argument of the model's forward, and not as a context variable, because activation checkpointing runs
a layer again in the backward, long after a context has gone. A call without that argument attends as
the model was loaded to, masks included: the model stays an ordinary one for everybody else.

Calls of ours build no masks. Which tokens a layer lets a token see is asked once, when the model is
switched: two tokens run through it, transformers' mask functions are noted as the masks are built, and
each attention module is known by the mask that reaches it (spans.py).
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lorakit.errors import ModelError
from lorakit.execution.lengths import context_length
from lorakit.execution.modes import evaluating
from lorakit.execution.settings import SPANS, AttentionSettings, settings_of
from lorakit.execution.spans import MaskFunction, Span, hidden, read_span
from lorakit.kernels.attention import attend
from lorakit.kernels.layout import Layout, PaddedGroup, layout
from lorakit.models.quiet import quiet

KEYWORD = "lorakit_call"
_PREFIX = "lorakit_"
# A call that needs no mask, because its attention knows where each sequence lies. Masks are built at
# the top of a model's forward, never while a layer is recomputed, so a context variable will do.
_maskless: ContextVar[bool] = ContextVar("lorakit_maskless", default=False)
# While a model is asked what its layers see: every mask that is built, and its function.
_asked: ContextVar[list[tuple[Tensor, MaskFunction]] | None] = ContextVar(
    "lorakit_asked", default=None
)


@dataclass(frozen=True, eq=False)
class PackedCall:
    """Packed sequences: attention within each of them."""

    layout: Layout
    _hidden: dict[Any, Mapping[PaddedGroup, Tensor]] = field(default_factory=dict)

    def run(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        arguments: dict[str, Any],
    ) -> Tensor:
        """(T, H, E) from (1, H, T, D), (1, K, T, D), (1, K, T, E)."""
        if mask is not None:
            raise ModelError(
                f"{type(module).__name__} brings a mask: its sequences cannot be packed"
            )
        settings = settings_of(module, query, key, value, arguments)
        q_THD, k_TKD, v_TKE = (x[0].transpose(0, 1) for x in (query, key, value))
        bias = self._bias(settings.span, arguments.get("position_bias"), query)
        return attend(q_THD, k_TKD, v_TKE, self.layout, bias=bias, **settings.arguments())

    def _bias(
        self, span: Span, position_bias: Tensor | None, query: Tensor
    ) -> Mapping[PaddedGroup, Tensor] | None:
        """What is added to the scores of each group, where there is more to it than a window."""
        if position_bias is None and span.function is None:
            return None
        known = (span, query.dtype)
        if known not in self._hidden:
            self._hidden[known] = {
                group: hidden(span, group.length, query) for group in self.layout.groups
            }
        masks = self._hidden[known]
        if position_bias is None:
            return masks
        return {
            group: _of_group(position_bias, group).to(query.dtype) + mask
            for group, mask in masks.items()
        }


def _of_group(bias: Tensor, group: PaddedGroup) -> Tensor:
    """(n, H or 1, M, M) of (1 or none, H or 1, T or 1, T): the sequences' own squares."""
    bias_HTT = bias.expand(1, *bias.shape[-3:])[0]
    if bias_HTT.shape[1] == 1:
        bias_HTT = bias_HTT.expand(-1, bias_HTT.shape[2], -1)
    rows_nM = group.rows.view(group.count, group.length)
    return bias_HTT[:, rows_nM[:, :, None], rows_nM[:, None, :]].transpose(0, 1)


@dataclass(frozen=True, eq=False)
class ObservedCall(PackedCall):
    """A packed call that notes what each attention module asks for, in the order they run."""

    settings: dict[nn.Module, AttentionSettings] = field(default_factory=dict)
    biased: set[nn.Module] = field(default_factory=set)

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
        self.settings[module] = settings_of(module, query, key, value, arguments)
        if arguments.get("position_bias") is not None:
            self.biased.add(module)
        return super().run(module, query, key, value, mask, arguments)


@dataclass(frozen=True, eq=False)
class _AskingCall(PackedCall):
    """A call of one sequence that notes by which mask function each attention module is masked."""

    masks: list[tuple[Tensor, MaskFunction]] = field(default_factory=list)
    asked: dict[nn.Module, MaskFunction | None] = field(default_factory=dict)

    def run(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        arguments: dict[str, Any],
    ) -> Tensor:
        """As `PackedCall.run`, of plain causal attention."""
        function = None
        if mask is not None:
            function = self._function(module, mask)
        if self.asked.setdefault(module, function) is not function:
            raise ModelError(f"{type(module).__name__} has more than one mask")
        return super().run(module, query, key, value, None, arguments)

    def _function(self, module: nn.Module, mask: Tensor) -> MaskFunction:
        for built, function in self.masks:
            if mask.data_ptr() == built.data_ptr() and mask.shape == built.shape:
                return function
        raise ModelError(f"{type(module).__name__} makes a mask of its own")


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
    build, asked = ALL_MASK_ATTENTION_FUNCTIONS[loaded], _asked.get()
    if asked is None:
        return build(*args, **kwargs)
    kwargs["allow_is_causal_skip"] = False  # else None would stand for any mask of two tokens
    mask = build(*args, **kwargs)
    if isinstance(mask, Tensor):
        asked.append((mask, kwargs.get("mask_function", causal_mask_function)))
    return mask


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
    try:
        _set(model, name)
        _ask_masks(model)
    except Exception:
        # Some towers may be switched already where another cannot be.
        with quiet():
            model.set_attn_implementation(loaded)
        raise


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
def _ask_masks(model: Any) -> None:
    """Remember of each attention module which tokens a token sees there, by running two tokens.

    Raises:
        ModelError: a module makes a mask of its own, or is not causal.
    """
    call = _AskingCall(layout((2,), model.device), masks=[])
    token = _asked.set(call.masks)
    try:
        with evaluating(model):
            _run_two(model, call)
    finally:
        _asked.reset(token)
    places = context_length(model.config) or 0
    spans: dict[MaskFunction, Span] = {}
    for module, function in call.asked.items():
        SPANS.pop(module, None)
        if function is None:
            continue
        if function not in spans:
            try:
                spans[function] = read_span(function, max(places, 4096), model.device)
            except ModelError as error:
                raise ModelError(f"{type(module).__name__}: {error}") from error
        SPANS[module] = spans[function]


@torch.no_grad()
def observe(model: Any) -> ObservedCall:
    """What each attention module asks for in the model's present mode, by running two tokens.

    Raises:
        ModelError: the attention cannot be switched, or asks for what cannot be done.
    """
    switch(model)
    call = ObservedCall(layout((2,), model.device))
    with maskless():
        _run_two(model, call)
    return call


def _run_two(model: Any, call: PackedCall) -> None:
    model.base_model(
        input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device),
        position_ids=torch.arange(2, device=model.device)[None],
        use_cache=False,
        **{KEYWORD: call},
    )
