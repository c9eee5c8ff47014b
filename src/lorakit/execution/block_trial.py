"""Are a model's fused blocks its own blocks, up to rounding? In 16 bits: asked block by block.

Through a whole model rounding grows: the gradients of SmolLM2-135M in bfloat16, by its own code, are up to a third
off those in float32 for random tokens, and two right ways are further apart than a wrong one in a kinder model.
Within one block, from the same input, they are a few hundredths apart, most often. Where they are further apart, both
are held against the same block in float32: a fused block may be no further from it than the model's own code.
"""

import copy
import logging
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
        found: list[Computed] = []
        noted = partial(_noted, compute, found)
        if not same_computed(model, way, noted, expected, least=_LEAST):
            wide = partial(_wide, angles=angles, positions_T=positions_T, where=where, block=block)
            if not found or not _as_near(found[-1], expected, wide, before_1TD[0], way):
                return False
        x_1TD = expected.answer[None]
    return True


_log = logging.getLogger("lorakit.execution")
_FURTHER = 1.25


def _noted(compute: Callable[[], Computed], found: list[Computed]) -> Computed:
    found.append(compute())
    return found[-1]


def _as_near(
    fused: Computed,
    own: Computed,
    wide: Callable[[Tensor], Computed],
    x_TD: Tensor,
    way: str,
) -> bool:
    """Whether a fused block is about as near to the block in float32 as the model's own code is, in every tensor."""
    exact = wide(x_TD)
    sides = [(each.answer, *each.gradients) for each in (fused, own, exact)]
    if len({len(each) for each in sides}) > 1:
        return False
    ratios = [
        float((a.float() - c.float()).norm() / (b.float() - c.float()).norm().clamp_min(1e-30))
        for a, b, c in zip(*sides, strict=True)
        if not torch.equal(a, b)
    ]
    _log.info("%s: %.2f times as far from float32 as its own code", way, max(ratios, default=0))
    return all(ratio <= _FURTHER for ratio in ratios)


def _wide(
    x_TD: Tensor,
    angles: tuple[Tensor, Tensor],
    positions_T: Tensor,
    where: Layout,
    block: DecoderBlock,
) -> Computed:
    """What the model's own code gives for a copy of the block in float32."""
    twin = DecoderBlock(copy.deepcopy(block.module).float(), block.path)
    pairs = [parameter for _, parameter in pair_parameters(twin.module)]
    cos, sin = angles
    own = partial(_own, angles=(cos.float(), sin.float()), block=twin)
    return _followed(partial(own, positions_T=positions_T, where=where), x_TD.float(), pairs)


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
