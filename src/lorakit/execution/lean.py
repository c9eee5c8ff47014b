"""Blocks of the llama family by our own short code: what decoding many short rows is slow for.

With one token for each of 32 sequences a layer of transformers' code spends more time between its
products than in them. A model qualifies by its parts and not by its name: embedding, blocks of
RMSNorm, attention with q, k, v and o projections (with or without norms on the heads), residual,
RMSNorm, gated MLP, residual, a last norm and a plain head. That the parts mean what they seem to is
found by trying, see `forward.open_forward`. q, k and v share one product, and so do gate and up:
their weights are laid under one another once, and the model's own parameters become views of that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakit.execution.cached import Layer, attend_step
from lorakit.execution.packed import AttentionSettings
from lorakit.execution.steps import Step
from lorakit.kernels.slots import BatchPlan, SlotGroup

_TOP = {"embed_tokens", "layers", "norm", "rotary_emb"}
_BLOCK = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_INPUTS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


@dataclass(frozen=True, eq=False)
class _Block:
    """The tensors of one block; `eps` of its two norms; `head_norms` of q and k, or None."""

    norms: tuple[Tensor, Tensor]
    eps: tuple[float, float]
    qkv: tuple[Tensor, Tensor | None]
    o: tuple[Tensor, Tensor | None]
    gate_up: tuple[Tensor, Tensor | None]
    down: tuple[Tensor, Tensor | None]
    head_norms: tuple[nn.Module, nn.Module] | None
    asked: AttentionSettings
    key_heads: int
    width: int


class LeanBlocks:
    """A model that qualifies, as tensors.

    Attributes:
        grouped: paths of linear layers that share their input, in the order they run.
    """

    def __init__(
        self, model: Any, blocks: Sequence[_Block], grouped: list[tuple[str, ...]]
    ) -> None:
        self.model, self.blocks, self.grouped = model, blocks, grouped
        base = model.base_model
        self._norm, self._norm_eps = base.norm.weight, _eps(base.norm)
        self._head = model.get_output_embeddings()
        self.groups: Sequence[SlotGroup] = ()

    @classmethod
    def of(cls, model: Any, layers: dict[nn.Module, Layer]) -> "LeanBlocks | None":
        """The model, if its parts qualify; that its head is plain is for the caller to know."""
        base = model.base_model
        if _children(base) != _TOP or not _is_rms(base.norm):
            return None
        prefix = next(path for path, module in model.named_modules() if module is base)
        blocks, grouped = [], []
        for number, block in enumerate(base.layers):
            layer = layers.get(block.self_attn) if _qualifies(block) else None
            if layer is None or layer.asked.heads % layer.key_heads:
                return None
            blocks.append(_read(block, layer))
            for names in _INPUTS:
                part = "self_attn" if names[0] in _ATTENTION else "mlp"
                grouped.append(tuple(f"{prefix}.layers.{number}.{part}.{n}" for n in names))
        return cls(model, blocks, grouped) if blocks else None

    def use(self, groups: Sequence[SlotGroup]) -> None:
        """Take the slots that belong to `grouped`, in its order."""
        self.groups = groups

    def logits(
        self, ids_T: Tensor, step: Step, keep_L: Tensor, arenas: Sequence[Tensor], batch: BatchPlan
    ) -> Tensor:
        """(L, vocabulary) at the places `keep_L` of the step."""
        base = self.model.base_model
        x_TD = base.embed_tokens(ids_T)
        cos_1TE, sin_1TE = base.rotary_emb(x_TD[None], step.positions[None])
        half = cos_1TE.shape[-1] // 2
        cos_T1E = cos_1TE[0, :, None]
        # (x₁, x₂) cos + (x₂, x₁) (-sin, sin): the halves swap by rolling, the sign is in the sine.
        sin_T1E = torch.cat((-sin_1TE[0, :, :half], sin_1TE[0, :, half:]), dim=-1)[:, None]
        groups = iter(self.groups) if batch.segments else None
        for block, arena in zip(self.blocks, arenas, strict=True):
            x_TD = _run(block, x_TD, cos_T1E, sin_T1E, step, arena, groups, batch)
        x_LD = x_TD.index_select(0, keep_L)
        x_LD = F.rms_norm(x_LD, x_LD.shape[-1:], self._norm, self._norm_eps)
        logits: Tensor = self._head(x_LD)
        return logits


def _run(
    block: _Block,
    x_TD: Tensor,
    cos_T1E: Tensor,
    sin_T1E: Tensor,
    step: Step,
    arena: Tensor,
    groups: Any,
    batch: BatchPlan,
) -> Tensor:
    tokens, shape = x_TD.shape[0], x_TD.shape[-1:]
    heads, keys, width = block.asked.heads, block.key_heads, block.width
    n_TD = F.rms_norm(x_TD, shape, block.norms[0], block.eps[0])
    y = F.linear(n_TD, *block.qkv)
    if groups is not None:
        next(groups).add(n_TD, y, batch)
    y_THE = y.view(tokens, heads + 2 * keys, width)
    qk = y_THE[:, : heads + keys]
    if block.head_norms is None:
        turned = qk
    else:
        q_norm, k_norm = block.head_norms
        turned = torch.cat((q_norm(qk[:, :heads]), k_norm(qk[:, heads:])), dim=1)
    rolled = turned.roll(width // 2, dims=-1)
    torch.addcmul(turned * cos_T1E, rolled, sin_T1E, out=qk)
    arena.index_copy_(0, step.cells, y_THE[:, heads:].view(tokens, 2, keys, width))
    o_TO = attend_step(y_THE[:, :heads], arena, step, block.asked).view(tokens, -1)
    # Adapters before the residual: in 16 bits a small update would be lost in the larger numbers.
    y_TD = F.linear(o_TO, *block.o)
    if groups is not None:
        next(groups).add(o_TO, y_TD, batch)
    x_TD = y_TD.add_(x_TD)
    n_TD = F.rms_norm(x_TD, shape, block.norms[1], block.eps[1])
    gu = F.linear(n_TD, *block.gate_up)
    if groups is not None:
        next(groups).add(n_TD, gu, batch)
    gate, up = gu.chunk(2, dim=1)
    act = F.silu(gate).mul_(up)
    y_TD = F.linear(act, *block.down)
    if groups is not None:
        next(groups).add(act, y_TD, batch)
    return y_TD.add_(x_TD)


def _read(block: Any, layer: Layer) -> _Block:
    attention, mlp = block.self_attn, block.mlp
    parts = dict(attention.named_children())
    norms = (block.input_layernorm, block.post_attention_layernorm)
    return _Block(
        norms=(norms[0].weight, norms[1].weight),
        eps=(_eps(norms[0]), _eps(norms[1])),
        qkv=_joined([attention.q_proj, attention.k_proj, attention.v_proj]),
        o=(attention.o_proj.weight, attention.o_proj.bias),
        gate_up=_joined([mlp.gate_proj, mlp.up_proj]),
        down=(mlp.down_proj.weight, mlp.down_proj.bias),
        head_norms=(parts["q_norm"], parts["k_norm"]) if "q_norm" in parts else None,
        asked=layer.asked,
        key_heads=layer.key_heads,
        width=layer.width,
    )


def _joined(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weights and biases under one another; the layers' own become views, so no memory is lost."""
    weight = torch.cat([each.weight.data for each in linears])
    bias = None
    if linears[0].bias is not None:
        bias = torch.cat([each.bias.data for each in linears])
    row = 0
    for each in linears:
        each.weight.data = weight[row : row + each.out_features]
        if bias is not None:
            each.bias.data = bias[row : row + each.out_features]
        row += each.out_features
    return weight, bias


def _qualifies(block: nn.Module) -> bool:
    if _children(block) != _BLOCK:
        return False
    attention, mlp = block.get_submodule("self_attn"), block.get_submodule("mlp")
    parts = _children(attention) - {"rotary_emb"}
    if parts not in (_ATTENTION, _ATTENTION | _HEAD_NORMS) or _children(mlp) != _MLP:
        return False
    inputs = [
        [(attention if name in _ATTENTION else mlp).get_submodule(name) for name in names]
        for names in _INPUTS
    ]
    for linears in inputs:
        if any(type(each) is not nn.Linear for each in linears):
            return False
        if len({each.bias is None for each in linears}) > 1:
            return False
    norms = [block.get_submodule(name) for name in sorted(_BLOCK - {"self_attn", "mlp"})]
    return all(map(_is_rms, norms))


def _is_rms(module: nn.Module) -> bool:
    """One weight, no bias, and an ε under one of the two names that transformers gives it."""
    return [name for name, _ in module.named_parameters()] == ["weight"] and bool(_eps(module))


def _eps(norm: nn.Module) -> float:
    known = vars(norm)
    return float(known.get("variance_epsilon", known.get("eps", 0.0)))


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}
