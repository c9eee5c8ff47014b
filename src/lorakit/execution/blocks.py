"""Transformer blocks of the llama family run by the hot path of `lorakit.kernels.block`.

    with fused_blocks(model):      # inside packed_attention
        ...

A block qualifies by its parts and not by its name: RMSNorm, attention with q, k, v and o
projections (with or without norms on the heads), residual, RMSNorm, gated MLP, residual; every
linear plain or with a pair. That the parts mean what they seem to is then found by trying: the
hidden states of a few tokens must be those of the model's own code. Llama, Mistral, Qwen 2,
Qwen 3, SmolLM2 and their like pass. Any other model keeps its own code around lorakit's layers.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorakit.execution.packed import (
    AttentionSettings,
    attention_settings,
    evaluating,
    packed_attention,
    packed_hidden,
    supports_packing,
)
from lorakit.kernels.attention import attend, probabilities_kept
from lorakit.kernels.block import gated_mlp, normed_group, residual_linear
from lorakit.kernels.groups import Linear
from lorakit.kernels.layout import Layout
from lorakit.kernels.rotary import rotate
from lorakit.lora.jobs import JointLinear
from lorakit.lora.layers import LoraLinear

_log = logging.getLogger("lorakit.training")

_BLOCK = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class FusedBlock(nn.Module):
    """One block, computed by the hot path where it is told the layout, by its own code elsewhere.

    Attributes:
        base: the model's own block, whose parameters it reads.
        attention: what the block's attention asks for.
        recompute: keep the block's input alone and run it again in the backward.
    """

    def __init__(self, base: nn.Module, attention: AttentionSettings, *, recompute: bool) -> None:
        super().__init__()
        self.base = base
        self.attention = attention
        self.recompute = recompute

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        lorakit_layout: Layout | None = None,
        **kwargs: Any,
    ) -> Any:
        """(1, T, D) -> (1, T, D)."""
        if lorakit_layout is None or position_embeddings is None:
            return self.base(
                hidden_states,
                *args,
                position_embeddings=position_embeddings,
                lorakit_layout=lorakit_layout,
                **kwargs,
            )
        cos, sin = position_embeddings
        inputs = (hidden_states[0], cos[0], sin[0], lorakit_layout)
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._run, *inputs, use_reentrant=False)[None]
        return self._run(*inputs)[None]

    def _run(self, x_TD: Tensor, cos_TE: Tensor, sin_TE: Tensor, where: Layout) -> Tensor:
        base: Any = self.base
        attention, mlp = base.self_attn, base.mlp
        width = cos_TE.shape[-1]
        q, k, v = normed_group(
            x_TD,
            base.input_layernorm.weight,
            _eps(base.input_layernorm),
            [_linear(each) for each in (attention.q_proj, attention.k_proj, attention.v_proj)],
        )
        q_THE, k_TKE, v_TKE = (y.view(y.shape[0], -1, width) for y in (q, k, v))
        parts = dict(attention.named_children())
        if "q_norm" in parts:
            q_THE, k_TKE = parts["q_norm"](q_THE), parts["k_norm"](k_TKE)
        o_THE = attend(
            rotate(q_THE, cos_TE, sin_TE),
            rotate(k_TKE, cos_TE, sin_TE),
            v_TKE,
            where,
            **self.attention.arguments(),
        )
        x_TD = residual_linear(x_TD, o_THE.flatten(1), _linear(attention.o_proj))
        return gated_mlp(
            x_TD,
            base.post_attention_layernorm.weight,
            _eps(base.post_attention_layernorm),
            _linear(mlp.gate_proj),
            _linear(mlp.up_proj),
            _linear(mlp.down_proj),
        )


@contextlib.contextmanager
def fused_blocks(model: Any, *, recompute: bool = False) -> Iterator[int]:
    """Within the block the qualifying blocks of the model run fused; then as before.

    Args:
        model: with or without pairs attached.
        recompute: activation checkpointing of the fused blocks; the caller asks transformers for
            that of the others.

    Yields:
        How many blocks run fused; 0 where the model's own code stays.
    """
    found = _candidates(model) if supports_packing(model) else {}
    if found and not _same(model, found):
        _log.info("%s keeps its own blocks: fused they answer otherwise", type(model).__name__)
        found = {}
    with _swapped(model, found, recompute=recompute):
        yield len(found)


def numbers_kept(model: Any, lengths: Sequence[int]) -> float | None:
    """Numbers kept for the backward pass for each token, all fused blocks together.

    x, q, k, v, o, x', g and u of each block; and the probabilities of sequences short enough that
    attention keeps them.

    Args:
        model: the base, or one with pairs (whose h, a few numbers, are left out).
        lengths: tokens of each sequence.

    Returns:
        None where a block of the model would not run fused.
    """
    with packed_attention(model), fused_blocks(model):
        fused = [m for m in model.modules() if isinstance(m, FusedBlock)]
    if len(fused) != model.config.get_text_config().num_hidden_layers:
        return None
    kept = 0.0
    for block in fused:
        attention, mlp = (block.base.get_submodule(name) for name in ("self_attn", "mlp"))
        q, k, v, o = (_linear(attention.get_submodule(f"{name}_proj")) for name in "qkvo")
        gate, up = (_linear(mlp.get_submodule(name)) for name in ("gate_proj", "up_proj"))
        kept += sum(each.weight.shape[0] for each in (q, k, v, gate, up))
        kept += 2 * o.weight.shape[0] + o.weight.shape[1]
        asked = block.attention
        kept += asked.heads * probabilities_kept(
            lengths, model.dtype, model.device, window=asked.window, softcap=asked.softcap
        )
    return kept


def _candidates(model: Any) -> dict[str, tuple[nn.Module, AttentionSettings]]:
    blocks = {path: m for path, m in model.named_modules() if _children(m) == _BLOCK}
    if not blocks:
        return {}
    settings = attention_settings(model)
    found = {}
    for path, block in blocks.items():
        asked = settings.get(block.get_submodule("self_attn"))
        # Dropout of attention is the model's own business: it differs between training and not.
        if asked is not None and not asked.dropout and _qualifies(block):
            found[path] = (block, asked)
    return found


def _qualifies(block: nn.Module) -> bool:
    attention, mlp = block.get_submodule("self_attn"), block.get_submodule("mlp")
    parts = _children(attention) - {"rotary_emb"}
    if parts not in (_ATTENTION, _ATTENTION | _HEAD_NORMS) or _children(mlp) != _MLP:
        return False
    linears = [attention.get_submodule(name) for name in sorted(_ATTENTION)]
    linears += [mlp.get_submodule(name) for name in sorted(_MLP - {"act_fn"})]
    norms = [block.get_submodule(name) for name in sorted(_BLOCK - {"self_attn", "mlp"})]
    return all(map(_fits, linears)) and all(map(_is_rms, norms))


def _fits(module: nn.Module) -> bool:
    """A plain linear, or pairs over one without dropout."""
    if isinstance(module, LoraLinear | JointLinear):
        plain = module.geometry.plain and not module.geometry.transposed
        return plain and not module.dropout
    return type(module) is nn.Linear


def _is_rms(module: nn.Module) -> bool:
    """One weight, no bias, and an ε under one of the two names that transformers gives it."""
    return [name for name, _ in module.named_parameters()] == ["weight"] and bool(_eps(module))


def _eps(norm: nn.Module) -> float:
    known = vars(norm)
    return float(known.get("variance_epsilon", known.get("eps", 0.0)))


def _linear(module: Any) -> Linear:
    if isinstance(module, JointLinear):
        return module.linear()
    if isinstance(module, LoraLinear):
        return Linear(module.weight, module.bias, (module.pair(),))
    return Linear(module.weight, module.bias)


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


@contextlib.contextmanager
def _swapped(
    model: Any, found: dict[str, tuple[nn.Module, AttentionSettings]], *, recompute: bool
) -> Iterator[None]:
    for path, (block, asked) in found.items():
        model.set_submodule(path, FusedBlock(block, asked, recompute=recompute))
    try:
        yield
    finally:
        for path, (block, _) in found.items():
            model.set_submodule(path, block)


@torch.no_grad()
def _same(model: Any, found: dict[str, tuple[nn.Module, AttentionSettings]]) -> bool:
    """Whether the fused blocks give the hidden states that the model's own give."""
    generator = torch.Generator().manual_seed(0)
    lengths = (7, 12)
    rows = model.get_input_embeddings().weight.shape[0]
    ids_T = torch.randint(rows, (sum(lengths),), generator=generator).to(model.device)
    positions_T = torch.cat([torch.arange(n) for n in lengths]).to(model.device)
    with evaluating(model), packed_attention(model):
        expected = packed_hidden(model, ids_T, positions_T, lengths).float()
        try:
            with _swapped(model, found, recompute=False):
                got = packed_hidden(model, ids_T, positions_T, lengths).float()
        except RuntimeError as error:  # parts whose shapes mean something else
            _log.info("%s: %s", type(model).__name__, error)
            return False
    close = 2e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((got - expected).abs().max() <= close * expected.abs().max())
