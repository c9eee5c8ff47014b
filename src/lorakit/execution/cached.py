"""A step of many sequences through any transformers model, earlier keys and values in one arena.

Everything but attention works on the step's row of tokens as it is; what each of them sees is planned
once a step, see steps.py. The attention is registered with transformers as ``lorakit_cached``; where
the sequences lie travels to it as a keyword argument of the model's forward, as in attention.py.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from lorakit.errors import ModelError
from lorakit.execution.packed import AttentionSettings, evaluating
from lorakit.execution.steps import Step
from lorakit.kernels.attention import attend
from lorakit.kernels.layout import layout
from lorakit.models.quiet import quiet

NAME = "lorakit_cached"
_KEYWORD = "lorakit_step"


def attend_step(q_THD: Tensor, arena: Tensor, step: Step, asked: AttentionSettings) -> Tensor:
    """Attention of a step's tokens on the cells of their own sequences, (T, H, D).

    Args:
        q_THD: queries of the step; any strides.
        arena: (cells, 2, K, D); the step's own keys and values are in it already.
        step: from `plan_step`.
        asked: what the layer's attention asks for.
    """
    heads, width = q_THD.shape[1:]
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    for group in step.decoding:
        kv = arena[group.low * group.size : group.high * group.size]
        kv = kv.view(group.high - group.low, group.size, *arena.shape[1:])[:, : group.longest]
        k, v = kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)
        q = q_THD.index_select(0, group.tokens).view(-1, heads, 1, width)
        window = asked.window if asked.window is None or asked.window < group.longest else None
        o = _attention(q, k, v, step.hidden_from(group, window, q), asked)[:, :, 0]
        out_THD.index_copy_(
            0, group.places, o if group.real is None else o.index_select(0, group.real)
        )
    for piece in step.pieces:
        length = piece.past + piece.last - piece.first
        kv = arena[piece.start : piece.start + length]
        k, v = kv[None, :, 0].transpose(1, 2), kv[None, :, 1].transpose(1, 2)
        q = q_THD[None, piece.first : piece.last].transpose(1, 2)
        window = asked.window if asked.window is None or asked.window < length else None
        bare = not piece.past and window is None
        mask = None if bare and asked.softcap is None else step.hidden_in(piece, window, q)
        out_THD[piece.first : piece.last] = _attention(q, k, v, mask, asked)[0].transpose(0, 1)
    return out_THD


def _attention(
    q_nHMD: Tensor, k_nKLD: Tensor, v_nKLD: Tensor, mask: Tensor | None, asked: AttentionSettings
) -> Tensor:
    """(n, H, M, D); causal where there is no mask. Soft caps take the formula as it stands."""
    if asked.softcap is None:
        return F.scaled_dot_product_attention(
            *(q_nHMD, k_nKLD, v_nKLD),
            attn_mask=mask,
            is_causal=mask is None,
            scale=asked.scale,
            enable_gqa=True,
        )
    times = q_nHMD.shape[1] // k_nKLD.shape[1]
    k, v = (x.repeat_interleave(times, dim=1) for x in (k_nKLD, v_nKLD))
    s = asked.softcap * torch.tanh(q_nHMD @ k.transpose(2, 3) * asked.scale / asked.softcap)
    assert mask is not None
    return torch.softmax(s + mask, dim=-1, dtype=torch.float32).to(q_nHMD.dtype) @ v


@dataclass(frozen=True)
class Layer:
    """One attention module: what it asks for, its key heads K and the width D of a head."""

    asked: AttentionSettings
    key_heads: int
    width: int


@dataclass(eq=False)
class _Probe:
    """Stands for a step while a model is asked what its layers are like."""

    seen: dict[nn.Module, Layer] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Running:
    step: Step
    arenas: dict[nn.Module, tuple[Tensor, AttentionSettings]]


def _cached(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    lorakit_step: "_Running | _Probe | None" = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls: (1, H, T, D) in, (1, T, H, D) out."""
    q_THD, k_TKD, v_TKD = (x[0].transpose(0, 1) for x in (query, key, value))
    if isinstance(lorakit_step, _Running):
        arena, asked = lorakit_step.arenas[module]
        arena.index_copy_(0, lorakit_step.step.cells, torch.stack((k_TKD, v_TKD), 1))
        return attend_step(q_THD, arena, lorakit_step.step, asked)[None], None
    what = type(module).__name__
    if lorakit_step is None:
        raise ModelError(f"{what} was not told where the sequences lie: call step_logits")
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    for wrong, reason in [
        (not causal, "is not causal"),
        (s_aux is not None, "has attention sinks"),
        (position_bias is not None, "adds a position bias"),
        (attention_mask is not None, "brings a mask"),
        (query.shape[0] != 1 or key.shape[2] != query.shape[2], "uses a cache or a batch"),
        (key.shape != value.shape, "has keys and values of different widths"),
    ]:
        if wrong:
            raise ModelError(f"{what} {reason}")
    asked = AttentionSettings(
        heads=query.shape[1],
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
        dropout=0.0,
    )
    lorakit_step.seen[module] = Layer(asked, key.shape[1], key.shape[3])
    where = layout((q_THD.shape[0],), q_THD.device)
    return attend(q_THD, k_TKD, v_TKD, where, **asked.arguments())[None], None


AttentionInterface.register(NAME, _cached)


@torch.no_grad()
def attach_cache(model: Any) -> dict[nn.Module, Layer]:
    """Let a model attend on arenas from now on; its attention modules, in the order they run.

    Raises:
        ModelError: its attention cannot be switched, or is of a kind that this cannot do.
    """
    name = type(model).__name__
    probe = _Probe()
    try:
        with quiet():
            model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            raise ModelError("its attention cannot be switched")
        ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        places = torch.arange(2, device=model.device)[None]
        with evaluating(model):
            model(input_ids=ids, position_ids=places, use_cache=False, **{_KEYWORD: probe})
    except (ModelError, TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise ModelError(f"{name} cannot be served: {error}") from error
    if not probe.seen:
        raise ModelError(f"{name} cannot be served: it keeps no keys and values of tokens")
    return probe.seen


def step_logits(
    model: Any,
    ids_T: Tensor,
    step: Step,
    keep_L: Tensor,
    arenas: dict[nn.Module, tuple[Tensor, AttentionSettings]],
) -> Tensor:
    """Next-token logits at the places `keep_L` of a step, (L, vocabulary), by the model's own code.

    Args:
        model: one that `attach_cache` was called for.
        ids_T: token ids of the step.
        step: from `plan_step`.
        keep_L: int64 indices into the T tokens.
        arenas: of each attention module.
    """
    logits_1LV = model(
        input_ids=ids_T[None],
        position_ids=step.positions[None],
        use_cache=False,
        logits_to_keep=keep_L,
        **{_KEYWORD: _Running(step, arenas)},
    ).logits
    assert isinstance(logits_1LV, Tensor)
    return logits_1LV[0]
