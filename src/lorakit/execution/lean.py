"""Blocks of the llama family by our own short code: what decoding many short rows is slow for.

With one token for each of 32 sequences a layer of transformers' code spends more time between its
products than in them. Which models qualify is in family.py, and that the parts mean what they seem to
is found by trying (stepping.py). q, k and v share one product, and so do gate and up: their weights
are laid under one another once, and the model's own parameters become views of that; packed ones stay
where they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakit.execution.cached import attend_step
from lorakit.execution.family import (
    INPUTS,
    Decoder,
    DecoderBlock,
    Norm,
    head_path,
    is_rms,
    read_decoder,
)
from lorakit.execution.settings import AttentionSettings
from lorakit.execution.steps import Step
from lorakit.kernels.decode import BlockTensors, CompiledDecoder
from lorakit.kernels.packed.joint import JointWeight
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.kernels.slot_plan import BatchPlan
from lorakit.kernels.slots import SlotGroup


@dataclass(frozen=True, eq=False)
class _Dense:
    """Linear layers that share their input, as one."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x_TI: Tensor) -> Tensor:
        return F.linear(x_TI, self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class _LeanBlock:
    """The tensors of one block; `head_norms` of q and k, or None."""

    norms: tuple[Norm, Norm]
    qkv: _Dense | JointWeight
    o: _Dense | JointWeight
    gate_up: _Dense | JointWeight
    down: _Dense | JointWeight
    head_norms: tuple[nn.Module, nn.Module] | None
    settings: AttentionSettings


class LeanBlocks:
    """A model that qualifies, as tensors.

    Attributes:
        grouped: paths of linear layers that share their input, in the order they run.
    """

    states = None

    def __init__(
        self,
        model: Any,
        decoder: Decoder,
        blocks: Sequence[_LeanBlock],
        grouped: list[tuple[str, ...]],
    ) -> None:
        self.blocks, self.grouped, self._decoder = blocks, grouped, decoder
        self._norm = Norm.of(decoder.norm)
        self._head = model.get_output_embeddings()
        self.groups: Sequence[SlotGroup] = ()
        self._compiled = _compiled(blocks, self._norm, self._head)
        code = "short code" if self._compiled is None else "compiled kernels"
        self.way = f"by lorakit's {code}, all sequences in one row"

    @classmethod
    def of(cls, model: Any, layers: Mapping[nn.Module, AttentionSettings]) -> "LeanBlocks | None":
        """The model, if its parts qualify; that its head is plain is for the caller to know."""
        decoder = read_decoder(model)
        if decoder is None or not decoder.whole:
            return None
        for block in decoder.blocks:
            settings = layers.get(block.attention)
            if not block.bare or settings is None or settings.heads % settings.key_heads:
                return None
            if settings.value_width != settings.width:
                return None
        blocks = [_read(block, layers[block.attention]) for block in decoder.blocks]
        grouped = [block.paths(names) for block in decoder.blocks for names in INPUTS]
        head = head_path(model)
        if head is None:
            return None
        grouped.append((head,))
        return cls(model, decoder, blocks, grouped)

    def use(self, groups: Sequence[SlotGroup]) -> None:
        """Take the slots that belong to `grouped`, in its order."""
        self.groups = groups
        if self._compiled is not None:
            self._compiled.use(groups)

    def logits(
        self,
        ids_T: Tensor,
        step: Step,
        keep_L: Tensor,
        kv_caches: Sequence[Tensor],
        batch: BatchPlan,
    ) -> Tensor:
        """(L, vocabulary) at the places `keep_L` of the step."""
        x_TD = self._decoder.embed(ids_T)
        cos_1TE, sin_1TE = self._decoder.angles(x_TD[None], step.positions[None])
        if self._compiled is not None and not self._has_factors(batch):
            places = [(each.start, each.size, each.past, each.count) for each in step.places]
            angles = cos_1TE[0], sin_1TE[0]
            return self._compiled.logits(x_TD, angles, places, keep_L, kv_caches, batch)
        half = cos_1TE.shape[-1] // 2
        cos_T1E = cos_1TE[0, :, None]
        # (x₁, x₂) cos + (x₂, x₁) (-sin, sin): the halves swap by rolling, the sign is in the sine.
        sin_T1E = torch.cat((-sin_1TE[0, :, :half], sin_1TE[0, :, half:]), dim=-1)[:, None]
        groups = iter(self.groups) if batch.segments else None
        for block, kv_cache in zip(self.blocks, kv_caches, strict=True):
            x_TD = _run(block, x_TD, cos_T1E, sin_T1E, step, kv_cache, groups, batch)
        x_LD = x_TD.index_select(0, keep_L)
        x_LD = F.rms_norm(x_LD, x_LD.shape[-1:], self._norm.weight, self._norm.eps)
        logits: Tensor = self._head(x_LD)
        if groups is not None and batch.kept is not None:
            next(groups).add(x_LD, logits, batch.kept)
        return logits

    def _has_factors(self, batch: BatchPlan) -> bool:
        """Whether an adapter of the step multiplies its outputs, which the compiled decoder does not."""
        return any(group.has_factors(batch.slots) for group in self.groups)


def _run(
    block: _LeanBlock,
    x_TD: Tensor,
    cos_T1E: Tensor,
    sin_T1E: Tensor,
    step: Step,
    kv_cache: Tensor,
    groups: Any,
    batch: BatchPlan,
) -> Tensor:
    tokens, shape = x_TD.shape[0], x_TD.shape[-1:]
    heads, keys, width = block.settings.heads, block.settings.key_heads, block.settings.width
    n_TD = F.rms_norm(x_TD, shape, block.norms[0].weight, block.norms[0].eps)
    y = block.qkv(n_TD)
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
    kv_cache.index_copy_(0, step.cells, y_THE[:, heads:].view(tokens, 2, keys, width))
    o_TO = attend_step(y_THE[:, :heads], kv_cache, step, block.settings).view(tokens, -1)
    # Adapters before the residual: in 16 bits a small update would be lost in the larger numbers.
    y_TD = block.o(o_TO)
    if groups is not None:
        next(groups).add(o_TO, y_TD, batch)
    x_TD = y_TD.add_(x_TD)
    n_TD = F.rms_norm(x_TD, shape, block.norms[1].weight, block.norms[1].eps)
    gu = block.gate_up(n_TD)
    if groups is not None:
        next(groups).add(n_TD, gu, batch)
    gate, up = gu.chunk(2, dim=1)
    act = F.silu(gate).mul_(up)
    y_TD = block.down(act)
    if groups is not None:
        next(groups).add(act, y_TD, batch)
    return y_TD.add_(x_TD)


def _compiled(blocks: Sequence[_LeanBlock], norm: Norm, head: Any) -> CompiledDecoder | None:
    """The blocks by the compiled kernels, where these run here and do what the blocks ask for."""
    sizes = {(b.settings.heads, b.settings.key_heads, b.settings.width) for b in blocks}
    settings = [block.settings for block in blocks]
    if len(sizes) > 1 or any(
        each.softcap is not None or each.sinks is not None or each.span.function is not None
        for each in settings
    ):
        return None
    if any(b.head_norms is not None and not all(map(is_rms, b.head_norms)) for b in blocks):
        return None
    dense = []
    for block in blocks:
        linears = (block.qkv, block.o, block.gate_up, block.down)
        dense.append([each for each in linears if isinstance(each, _Dense)])
        if len(dense[-1]) < len(linears):
            return None
    made = [
        BlockTensors(
            (_pair(block.norms[0]), _pair(block.norms[1])),
            _head_pairs(block),
            tuple((each.weight, each.bias) for each in linears),
            block.settings.scale,
            block.settings.window,
            block.settings.chunk,
        )
        for block, linears in zip(blocks, dense, strict=True)
    ]
    return CompiledDecoder.of(made, _pair(norm), (head.weight, head.bias), sizes.pop())


def _pair(norm: Norm) -> tuple[Tensor, float]:
    return norm.weight, norm.eps


def _head_pairs(block: _LeanBlock) -> tuple[tuple[Tensor, float], tuple[Tensor, float]] | None:
    if block.head_norms is None:
        return None
    queries, keys = (Norm.of(module) for module in block.head_norms)
    return _pair(queries), _pair(keys)


def _read(block: DecoderBlock, settings: AttentionSettings) -> _LeanBlock:
    qkv, o, gate_up, down = (_joined(block.linears(names)) for names in INPUTS)
    return _LeanBlock(
        norms=block.norms,
        qkv=qkv,
        o=o,
        gate_up=gate_up,
        down=down,
        head_norms=block.head_norms,
        settings=settings,
    )


def _joined(linears: Sequence[Any]) -> _Dense | JointWeight:
    """Weights and biases under one another; dense layers' own become views, so no memory is lost."""
    if isinstance(linears[0], PackedLinear):
        return JointWeight(linears)
    if len(linears) == 1:
        return _Dense(linears[0].weight, linears[0].bias)
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
    return _Dense(weight, bias)
