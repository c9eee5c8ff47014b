"""A step of many sequences through any transformers model, earlier keys and values in a KV cache.

Everything but attention works on the step's row of tokens as it is; what each of them sees is planned
once a step, see steps.py. The plan and the cache travel to the attention modules as a keyword argument
of the model's forward, as in attention.py.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakit.errors import ModelError
from lorakit.execution.attention import KEYWORD, maskless, observe
from lorakit.execution.modes import evaluating
from lorakit.execution.settings import AttentionSettings
from lorakit.execution.spans import CAUSAL
from lorakit.execution.steps import Step


def attend_step(q_THD: Tensor, kv_cache: Tensor, step: Step, settings: AttentionSettings) -> Tensor:
    """Attention of a step's tokens on the cells of their own sequences, (T, H, E).

    Args:
        q_THD: queries of the step; any strides.
        kv_cache: (cells, 2, K, `settings.cell_width`); the step's own keys and values are in it.
        step: from `plan_step`.
        settings: what the layer's attention asks for.
    """
    heads, width = q_THD.shape[1:]
    values = settings.value_width or width
    out_THE = q_THD.new_empty(*q_THD.shape[:2], values)
    for group in step.decoding:
        kv = kv_cache[group.low * group.size : group.high * group.size]
        kv = kv.view(group.high - group.low, group.size, *kv_cache.shape[1:])[:, : group.longest]
        k, v = (kv[:, :, i, :, :n].transpose(1, 2) for i, n in enumerate((width, values)))
        q = q_THD.index_select(0, group.tokens).view(-1, heads, 1, width)
        mask = step.hidden_from(group, settings.span.within(group.longest), q)
        o = _attention(q, k, v, mask, settings)[:, :, 0]
        out_THE.index_copy_(
            0, group.places, o if group.real is None else o.index_select(0, group.real)
        )
    for piece in step.pieces:
        length = piece.past + piece.last - piece.first
        kv = kv_cache[piece.start : piece.start + length]
        k, v = (kv[None, :, i, :, :n].transpose(1, 2) for i, n in enumerate((width, values)))
        q = q_THD[None, piece.first : piece.last].transpose(1, 2)
        span = settings.span.within(length)
        bare = not piece.past and span == CAUSAL
        needs = not bare or settings.softcap is not None or settings.sinks is not None
        hidden = step.hidden_in(piece, span, q) if needs else None
        out_THE[piece.first : piece.last] = _attention(q, k, v, hidden, settings)[0].transpose(0, 1)
    return out_THE


def _attention(
    q_nHMD: Tensor, k_nKLD: Tensor, v_nKLE: Tensor, mask: Tensor | None, settings: AttentionSettings
) -> Tensor:
    """(n, H, M, E); causal where there is no mask. Soft caps and sinks take the formula as it stands."""
    if settings.softcap is None and settings.sinks is None:
        return F.scaled_dot_product_attention(
            *(q_nHMD, k_nKLD, v_nKLE),
            attn_mask=mask,
            is_causal=mask is None,
            scale=settings.scale,
            enable_gqa=True,
        )
    times = q_nHMD.shape[1] // k_nKLD.shape[1]
    k, v = (x.repeat_interleave(times, dim=1) for x in (k_nKLD, v_nKLE))
    s = q_nHMD @ k.transpose(2, 3) * settings.scale
    if settings.softcap is not None:
        s = settings.softcap * torch.tanh(s / settings.softcap)
    assert mask is not None
    s = s + mask
    if settings.sinks is not None:
        sinks = settings.sinks.to(s.dtype)[None, :, None, None]
        s = torch.cat((s, sinks.expand(*s.shape[:3], 1)), dim=-1)
    p = torch.softmax(s, dim=-1, dtype=torch.float32).to(q_nHMD.dtype)
    return p[..., : k.shape[2]] @ v


@dataclass(frozen=True, eq=False)
class StepCall:
    """A step's tokens: attention on the cells of their own sequences.

    Attributes:
        step: from `plan_step`.
        kv_caches: of each attention module its cells, and what it asks for.
    """

    step: Step
    kv_caches: dict[nn.Module, tuple[Tensor, AttentionSettings]]

    def run(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        arguments: dict[str, Any],
    ) -> Tensor:
        """(T, H, E) from (1, H, T, D), (1, K, T, D), (1, K, T, E); the last two go to the cells."""
        kv_cache, settings = self.kv_caches[module]
        if key.shape[2] != query.shape[2]:
            raise ModelError(f"{type(module).__name__} adds keys to those of the step's tokens")
        width = settings.cell_width
        q_THD, k_TKD, v_TKE = (x[0].transpose(0, 1) for x in (query, key, value))
        kv = [F.pad(x, (0, width - x.shape[2])) for x in (k_TKD, v_TKE)]
        kv_cache.index_copy_(0, self.step.cells, torch.stack(kv, 1))
        return attend_step(q_THD, kv_cache, self.step, settings)


def cached_layers(model: Any) -> dict[nn.Module, AttentionSettings]:
    """Let a model attend on a KV cache; its attention modules, in the order they run.

    Raises:
        ModelError: its attention cannot be switched, or is of a kind that this cannot do.
    """
    name = type(model).__name__
    try:
        with evaluating(model):
            call = observe(model)
    except (ModelError, TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise ModelError(f"{name} cannot be served: {error}") from error
    if not call.settings:
        raise ModelError(f"{name} cannot be served: it keeps no keys and values of tokens")
    for module in call.biased:
        raise ModelError(f"{name} cannot be served: {type(module).__name__} adds a position bias")
    return call.settings


def step_logits(
    model: Any,
    ids_T: Tensor,
    step: Step,
    keep_L: Tensor,
    kv_caches: dict[nn.Module, tuple[Tensor, AttentionSettings]],
) -> Tensor:
    """Next-token logits at the places `keep_L` of a step, (L, vocabulary), by the model's own code.

    Args:
        model: one that `cached_layers` was called for.
        ids_T: token ids of the step.
        step: from `plan_step`.
        keep_L: int64 indices into the T tokens.
        kv_caches: of each attention module.
    """
    with maskless():
        logits_1LV = model(
            input_ids=ids_T[None],
            position_ids=step.positions[None],
            use_cache=False,
            logits_to_keep=keep_L,
            **{KEYWORD: StepCall(step, kv_caches)},
        ).logits
    assert isinstance(logits_1LV, Tensor)
    return logits_1LV[0]
