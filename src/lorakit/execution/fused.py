"""A decoder of the llama family run by the kernels of `lorakit.kernels.block`.

Everything between two attentions is one operation, with the pairs of `lora` inside it. Blocks that do
not fit (another kind of linear layer, dropout beside a pair) are run by the model's own code in the
same pass. No module of the model is replaced: the parts are read where they stand.
"""

from collections.abc import Collection, Mapping, Sequence
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorakit.execution.attention import KEYWORD, PackedCall
from lorakit.execution.by_sequence import within
from lorakit.execution.family import Decoder, DecoderBlock, Norm, linear_of
from lorakit.execution.settings import AttentionSettings
from lorakit.kernels.attention import attend, probabilities_kept
from lorakit.kernels.block import gated_mlp, normed_group, residual_linear
from lorakit.kernels.compiled_block import BlockForm, RmsNorm, compiled_block, has_kernels, takes
from lorakit.kernels.groups import Linear
from lorakit.kernels.layout import Layout
from lorakit.kernels.rotary import rotate


def fused_hidden(
    decoder: Decoder,
    settings: Mapping[str, AttentionSettings],
    fused: Collection[str],
    ids_T: Tensor,
    positions_T: Tensor,
    where: Layout,
    *,
    recompute: bool = False,
) -> Tensor:
    """The last hidden states of packed sequences, (T, D), after the final norm.

    Args:
        decoder: of the model.
        settings: of each fused block's attention, by the block's path.
        fused: paths of the blocks to be fused.
        ids_T: token ids.
        positions_T: place of each token in its sequence, from 0.
        where: the sequences lie.
        recompute: keep the input of each fused block alone and run it again in the backward.
    """
    x_1TD = decoder.embed(ids_T[None])
    cos_1TE, sin_1TE = decoder.angles(x_1TD, positions_T[None])
    for block in decoder.blocks:
        if block.path in fused:
            inputs = (x_1TD[0], cos_1TE[0], sin_1TE[0], where, block, settings[block.path])
            if recompute and torch.is_grad_enabled():
                x_1TD = checkpoint(fused_block, *inputs, use_reentrant=False)[None]
            else:
                x_1TD = fused_block(*inputs)[None]
        else:
            x_1TD = own_block(x_1TD, (cos_1TE, sin_1TE), positions_T, where, block)
    hidden_1TD: Tensor = decoder.norm(x_1TD)
    return hidden_1TD[0]


def own_block(
    x_1TD: Tensor,
    angles: tuple[Tensor, Tensor],
    positions_T: Tensor,
    where: Layout,
    block: DecoderBlock,
) -> Tensor:
    """One block by the model's own code: (1, T, D) -> (1, T, D)."""
    with within(where):
        y_1TD: Tensor = block.module(
            x_1TD,
            attention_mask=None,
            position_embeddings=angles,
            position_ids=positions_T[None],
            use_cache=False,
            **{KEYWORD: PackedCall(where)},
        )
    return y_1TD


def fused_block(
    x_TD: Tensor,
    cos_TE: Tensor,
    sin_TE: Tensor,
    where: Layout,
    block: DecoderBlock,
    settings: AttentionSettings,
) -> Tensor:
    """One block: (T, D) -> (T, D)."""
    width = cos_TE.shape[-1]
    q, k, v, o, gate, up, down = linears = [linear_of(each) for each in block.linears()]
    before, between = block.norms
    form = _form(block, linears, settings)
    if form is not None:
        y_TD = compiled_block(x_TD, cos_TE, sin_TE, where, form)
        if y_TD is not None:
            return y_TD
    parts = normed_group(x_TD, before.weight, before.eps, [q, k, v])
    q_THE, k_TKE, v_TKE = (y.view(y.shape[0], -1, width) for y in parts)
    if block.head_norms is not None:
        q_norm, k_norm = block.head_norms
        q_THE, k_TKE = q_norm(q_THE), k_norm(k_TKE)
    o_THE = attend(
        rotate(q_THE, cos_TE, sin_TE),
        rotate(k_TKE, cos_TE, sin_TE),
        v_TKE,
        where,
        **settings.arguments(),
    )
    x_TD = residual_linear(x_TD, o_THE.flatten(1), o)
    return gated_mlp(x_TD, between.weight, between.eps, gate, up, down)


# Blocks whose compiled twin was tried and gave another answer.
_plain: "WeakSet[nn.Module]" = WeakSet()


def leave_compiled(decoder: Decoder, paths: Collection[str]) -> None:
    """Let plain torch compute these blocks from now on."""
    _plain.update(block.module for block in decoder.blocks if block.path in paths)


def _form(
    block: DecoderBlock, linears: Sequence[Linear], settings: AttentionSettings
) -> BlockForm | None:
    """The block as the compiled kernels take it; None where it is more than they know."""
    beyond = (settings.chunk, settings.softcap, settings.sinks, settings.function)
    if settings.dropout or any(each is not None for each in beyond) or block.module in _plain:
        return None
    if not takes(linears) or any(pair.on is not None for each in linears for pair in each.pairs):
        return None
    head_norms = block.rms_of_heads
    if head_norms is None and block.head_norms is not None:
        return None
    return BlockForm(
        linears,
        (_rms(block.norms[0]), _rms(block.norms[1])),
        None if head_norms is None else (_rms(head_norms[0]), _rms(head_norms[1])),
        settings.scale,
        settings.window,
    )


def all_compiled(
    blocks: Sequence[DecoderBlock],
    settings: Mapping[str, AttentionSettings],
    dtype: torch.dtype,
    device: torch.device,
) -> bool:
    """Whether the compiled kernels are to compute all these blocks: see `elements_kept` for the arguments."""
    return has_kernels(dtype, device) and all(
        _form(block, [linear_of(each) for each in block.linears()], settings[block.path])
        is not None
        for block in blocks
    )


def _rms(norm: Norm) -> RmsNorm:
    return RmsNorm(norm.weight, norm.eps)


def elements_kept(
    blocks: Sequence[DecoderBlock],
    settings: Mapping[str, AttentionSettings],
    lengths: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    """Elements kept for the backward pass for each token, all fused blocks together.

    x, q, k, v, o, x', g and u of each block; and, where plain torch computes it, the probabilities of
    sequences short enough that attention keeps them.

    Args:
        blocks: those that run fused, with or without pairs (whose h, a few elements, is left out).
        settings: of each block's attention, by the block's path.
        lengths: tokens of each sequence.
        dtype: of the activations.
        device: where they lie.
    """
    kept = 0.0
    for block in blocks:
        linears, own = [linear_of(each) for each in block.linears()], settings[block.path]
        q, k, v, o, gate, up, _ = (each.frozen.shape for each in linears)
        kept += sum(out for out, _ in (q, k, v, gate, up))
        kept += 2 * o[0] + o[1]
        if has_kernels(dtype, device) and _form(block, linears, own) is not None:
            continue
        kept += own.heads * probabilities_kept(
            lengths, dtype, device, window=own.window, softcap=own.softcap
        )
    return kept
