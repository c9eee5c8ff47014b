"""Are a model's fused blocks its own blocks, up to rounding? In 16 bits: asked block by block.

Through a whole model rounding grows: the gradients of SmolLM2-135M in bfloat16, by its own code, are up to a third
off those in float32 for random tokens, and two right ways are further apart than a wrong one in a kinder model.
Within one block, from the same input, they are a few hundredths apart.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lorakit.execution.family import Decoder, DecoderBlock
from lorakit.execution.fused import fused_block, own_block
from lorakit.execution.settings import AttentionSettings
from lorakit.execution.trial import Computed, pair_parameters, same_computed, weights_of
from lorakit.kernels.layout import Layout

# Where a block attends to one token almost alone, the gradients of its queries and keys are small differences:
# in SmolLM2's twelfth block 1.5 % of the largest pair's, and half of that is rounding by plain torch, too.
_LEAST = 0.1


def same_blocks(
    model: Any,
    decoder: Decoder,
    settings: Mapping[str, AttentionSettings],
    paths: Collection[str],
    ids_T: Tensor,
    positions_T: Tensor,
    where: Layout,
) -> bool:
    """Whether each fused block gives its own block's output and gradients, from what the own ones before it give.

    Args:
        model, decoder, settings, ids_T, positions_T, where: as of `fused_hidden`.
        paths: of the blocks that are looked at.
    """
    x_1TD = decoder.embed(ids_T[None])
    angles = decoder.angles(x_1TD, positions_T[None])
    for block in decoder.blocks:
        before_1TD = x_1TD.detach()
        if block.path not in paths:
            x_1TD = own_block(before_1TD, angles, positions_T, where, block)
            continue

        own = partial(_own, angles=angles, positions_T=positions_T, where=where, block=block)
        fused = partial(_fused, angles=angles, where=where, block=block, own=settings[block.path])
        pairs = [parameter for _, parameter in pair_parameters(block.module)]
        expected = _followed(own, before_1TD[0], pairs)
        way, compute = f"fused block {block.path}", partial(_followed, fused, before_1TD[0], pairs)
        if not same_computed(model, way, compute, expected, least=_LEAST):
            return False
        x_1TD = expected.answer[None]
    return True


def _own(
    x_TD: Tensor,
    angles: tuple[Tensor, Tensor],
    positions_T: Tensor,
    where: Layout,
    block: DecoderBlock,
) -> Tensor:
    return own_block(x_TD[None], angles, positions_T, where, block)[0]


def _fused(
    x_TD: Tensor,
    angles: tuple[Tensor, Tensor],
    where: Layout,
    block: DecoderBlock,
    own: AttentionSettings,
) -> Tensor:
    return fused_block(x_TD, angles[0][0], angles[1][0], where, block, own)


def _followed(compute: Callable[[Tensor], Tensor], x_TD: Tensor, pairs: list[Any]) -> Computed:
    """A block's output and the gradients of a fixed weighted sum of it, by its input and its pairs."""
    if torch.is_inference_mode_enabled():
        return Computed(compute(x_TD), ())
    with torch.enable_grad():
        leaf = x_TD.clone().requires_grad_()
        y_TD = compute(leaf)
        total = (y_TD.float() * weights_of(y_TD, 0)).sum()
        found = torch.autograd.grad(total, [leaf, *pairs], allow_unused=True)
    gradients = [
        torch.zeros_like(p) if g is None else g for p, g in zip([leaf, *pairs], found, strict=True)
    ]
    return Computed(y_TD.detach(), tuple(gradients))
