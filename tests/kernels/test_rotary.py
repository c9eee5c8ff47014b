"""The rotation against the definition of arXiv 2104.09864, and finite differences."""

import math

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lorakit.kernels.rotary import rotate

T, H, D = 5, 3, 6


def angles():
    theta = torch.tensor(
        [[(t + 1) * 10.0 ** -(2 * i / D) for i in range(D // 2)] for t in range(T)]
    )
    both = torch.cat([theta, theta], dim=1).double()
    return both.cos(), both.sin()


def test_each_pair_of_numbers_is_turned_by_its_angle():
    """As multiplication of complex numbers by exp(iθ)."""
    x = torch.randn(T, H, D, dtype=torch.float64)
    cos, sin = angles()
    turned = torch.complex(x[..., : D // 2], x[..., D // 2 :]) * torch.complex(
        cos[:, None, : D // 2], sin[:, None, : D // 2]
    )
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(rotate(x, cos, sin), expected, rtol=1e-14, atol=1e-14)


def test_it_is_what_transformers_does():
    x = torch.randn(T, H, D, dtype=torch.float64)
    cos, sin = angles()
    expected, _ = apply_rotary_pos_emb(
        x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos[None], sin[None]
    )
    torch.testing.assert_close(rotate(x, cos, sin), expected[0].transpose(0, 1))


def test_gradcheck_on_a_strided_view():
    x = torch.randn(T, H, 2 * D, dtype=torch.float64, requires_grad=True)
    cos, sin = angles()
    assert torch.autograd.gradcheck(lambda x: rotate(x[..., :D], cos * math.e, sin), [x])
