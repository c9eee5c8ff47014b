"""The output head with its loss as one compiled call for some hundred tokens (native/src/head.cpp).

    Σ_l  -log softmax(h_l Wᵀ)[label_l],   its gradient (softmax - onehot) W formed at once

The same as head.py, which is its oracle and computes whatever has a bias, a pair or a head that is trained.

Legend: L supervised tokens, D hidden width, V vocabulary.
"""

import ctypes
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.kernels import native
from lorakit.kernels.workspace import LINE, workspace

_ADDRESS, _COUNT = ctypes.c_void_p, ctypes.c_int64
# Their logits are 100 MB for a vocabulary of 49,152 words; as many as head.py takes at once.
_TOKENS = 512


class _HeadStruct(ctypes.Structure):
    """As native/src/head.cpp has it."""

    _fields_ = (
        *((name, _COUNT) for name in ("tokens", "width", "words", "rooms")),
        *((name, _ADDRESS) for name in ("h", "w", "labels", "loss", "dh")),
        *((name, _ADDRESS) for name in ("logits", "total", "room")),
    )


def compiled_head_loss(
    hidden_LD: Tensor,
    weight_VD: Tensor,
    labels_L: Tensor,
    by_probability: bool = False,
    factor_L: Tensor | None = None,
) -> Tensor | None:
    """Summed nats of the labels, or None where plain torch has to compute them.

    Args:
        hidden_LD: hidden states of the positions that predict a label.
        weight_VD: the head's weight; it is frozen.
        labels_L: int64 token ids.
        by_probability: each token's nats times its own probability, taken as a constant (token_loss.py).
        factor_L: of each token's loss, float32; None where all are 1.
    """
    kernel = native.function("head_loss", "i", hidden_LD.dtype, hidden_LD.device)
    readable = (
        weight_VD.dtype == hidden_LD.dtype
        and weight_VD.device == hidden_LD.device
        and weight_VD.is_contiguous()
        and not weight_VD.requires_grad
        and labels_L.dtype == torch.int64
    )
    if kernel is None or not readable or not len(labels_L):
        return None
    if labels_L.min() < 0 or labels_L.max() >= len(weight_VD):  # plain torch says so
        return None
    return cast(
        Tensor, _CompiledHead.apply(hidden_LD, weight_VD, labels_L, by_probability, factor_L)
    )


class _CompiledHead(torch.autograd.Function):
    """`compiled_head_loss`; the gradient is formed in the forward pass and scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_LD: Tensor,
        weight_VD: Tensor,
        labels_L: Tensor,
        by_probability: bool,
        factor_L: Tensor | None,
    ) -> Tensor:
        hidden_LD, labels_L = hidden_LD.contiguous(), labels_L.contiguous()
        dtype, device = hidden_LD.dtype, hidden_LD.device
        sizes, kernel = (
            native.function("head_sizes", "iii", dtype, device),
            native.function("head_loss", "i", dtype, device),
        )
        assert sizes is not None
        assert kernel is not None
        row, room = ctypes.c_int64(), ctypes.c_int64()
        words, width = weight_VD.shape
        sizes(words, ctypes.addressof(row), ctypes.addressof(room))
        rooms = torch.get_num_threads()
        most = min(_TOKENS, len(hidden_LD))
        logits = most * row.value
        total = -(-most // LINE) * LINE
        memory = workspace.of(logits + total + rooms * room.value)
        loss_L = torch.empty(len(hidden_LD), dtype=torch.float64)
        gradient = torch.empty_like(hidden_LD) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden_LD), _TOKENS):
            head = _HeadStruct(
                tokens=min(_TOKENS, len(hidden_LD) - start),
                width=width,
                words=words,
                rooms=rooms,
                h=hidden_LD[start:].data_ptr(),
                w=weight_VD.data_ptr(),
                labels=labels_L[start:].data_ptr(),
                loss=loss_L[start:].data_ptr(),
                dh=None if gradient is None else gradient[start:].data_ptr(),
                logits=memory,
                total=memory + 4 * logits,
                room=memory + 4 * (logits + total),
            )
            kernel(ctypes.addressof(head))
        if by_probability or factor_L is not None:
            weight_L = torch.exp(-loss_L) if by_probability else torch.ones_like(loss_L)
            weight_L = weight_L if factor_L is None else weight_L * factor_L
            loss_L = weight_L * loss_L
            if gradient is not None:
                gradient.mul_(weight_L[:, None])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return loss_L.sum().to(torch.promote_types(dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad).to(gradient.dtype), None, None, None, None
