"""Attention in 16 bits: gradients near those of the formula in float64, however large the scores are."""

import math

import pytest
import torch
import torch.nn.functional as F

from lorakit.kernels import attention_flash
from lorakit.kernels.layout import layout

LENGTHS = (9, 70, 33)


def by_formula(q, k, v, scale):
    """softmax(s·q kᵀ) v of each sequence, causal, two query heads to a key head."""
    parts, start = [], 0
    for n in LENGTHS:
        rows = slice(start, start + n)
        keys, values = (x[rows].repeat_interleave(2, dim=1) for x in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q[rows], keys) * scale
        hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        parts.append(torch.einsum("hij,jhd->ihd", weights, values))
        start += n
    return torch.cat(parts)


@pytest.mark.skipif(
    not attention_flash.suits(torch.bfloat16, torch.device("cpu")),
    reason="torch has no flash forward",
)
@pytest.mark.parametrize("spread", [1.0, 8.0, 40.0])
@pytest.mark.parametrize("width", [8, 16, 64, 96, 128])
def test_gradients_are_near_the_formula(width, spread):
    """Scores go up to some thousands at a spread of 40; scales of 8, 96 and 128 are no powers of two."""
    generator = torch.Generator().manual_seed(width)
    shapes = ((sum(LENGTHS), 4, width), (sum(LENGTHS), 2, width), (sum(LENGTHS), 2, width))
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    q, k, v = (x.mul(f).bfloat16() for x, f in zip(inputs, (spread, spread, 1.0), strict=True))
    outside = torch.randn(shapes[0], generator=generator).bfloat16()
    scale = width**-0.5
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    wanted = torch.autograd.grad((by_formula(*exact, scale) * outside).sum(), exact)
    given = [x.clone().requires_grad_() for x in (q, k, v)]
    where = layout(LENGTHS, torch.device("cpu"))
    out = attention_flash.Flash.apply(*given, tuple(where.groups), scale)
    own = [x.clone().requires_grad_() for x in (q, k, v)]
    theirs = torch.autograd.grad((by_torch(*own, scale) * outside).sum(), own)
    ours = torch.autograd.grad((out * outside).sum(), given)
    for mine, other, true in zip(ours, theirs, wanted, strict=True):
        assert mine.isfinite().all()
        # With scores of thousands nearly all weight is on one key, and little is left but rounding.
        assert spread > 8 or (mine - true).norm() < 0.02 * true.norm() + 2 * (other - true).norm()


def by_torch(q, k, v, scale):
    """The same by torch's own kernel, backward included."""
    parts = [
        F.scaled_dot_product_attention(
            *(
                x.transpose(0, 1)[None]
                for x in (a, b.repeat_interleave(2, 1), c.repeat_interleave(2, 1))
            ),
            is_causal=True,
            scale=scale,
        )[0].transpose(0, 1)
        for a, b, c in zip(*(x.split(LENGTHS) for x in (q, k, v)), strict=True)
    ]
    return torch.cat(parts)
