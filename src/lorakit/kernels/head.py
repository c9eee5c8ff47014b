"""The loss of a plain output head in chunks, without ever holding all logits.

    Σ_l  -log softmax(h_l Wᵀ + b + s·(h_l Aᵀ) Bᵀ)[label_l]

Legend: L supervised tokens, C those of a chunk, D hidden width, V vocabulary, R rank of the head's pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.kernels.compiled_head import compiled_head_loss
from lorakit.kernels.gpu import dispatch
from lorakit.kernels.groups import LowRank
from lorakit.kernels.layout import compiles_shapes, rounded
from lorakit.kernels.token_loss import PLAIN, SURE_NATS, TokenLoss, shaped_loss_and_slope

# 512 rows of a 49,152-word vocabulary are 100 MB of float32 logits: large enough for a matmul at
# full speed, small beside the activations.
HEAD_CHUNK = 512
# Rows whose softmax is taken at once on a CPU: 3 MB of float32 for that vocabulary.
SOFTMAX_ROWS = 16


def chunked_head_loss(
    hidden_LD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    labels_L: Tensor,
    pair: LowRank | None = None,
    kind: TokenLoss = PLAIN,
    factor_L: Tensor | None = None,
) -> Tensor:
    """Summed nats of the labels; the gradients are formed in the forward pass.

    Args:
        hidden_LD: hidden states of the positions that predict a label.
        weight_VD: the head's weight.
        bias_V: its bias, or None.
        labels_L: int64 token ids.
        pair: beside the head, (R, D) and (V, R); None for a head without one.
        kind: the form of a token's loss.
        factor_L: of each token's loss, float32; None where all are 1.

    Returns:
        A scalar in float32 at least.
    """
    if bias_V is None and pair is None and not kind.smoothing:
        compiled = compiled_head_loss(hidden_LD, weight_VD, labels_L, kind.by_probability, factor_L)
        if compiled is not None:
            return compiled
    tensors = (None, None, 0.0) if pair is None else (pair.A, pair.B, pair.scale)
    return cast(
        Tensor, _ChunkedHead.apply(hidden_LD, weight_VD, bias_V, labels_L, *tensors, kind, factor_L)
    )


class _ChunkedHead(torch.autograd.Function):
    """Σ cross-entropy(h Wᵀ + b + s·(h Aᵀ) Bᵀ, labels) without ever holding the (L, V) logits.

    With G = softmax - onehot (`_nll_and_slope`), every gradient is formed chunk by chunk while the logits are there:
    G W + s·(G B) A of h, Gᵀ h of W, s·(G B)ᵀ h of A and s·Gᵀ (h Aᵀ) of B. The backward only scales
    them. What is frozen gets none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_LD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_L: Tensor,
        A_RD: Tensor | None,
        B_VR: Tensor | None,
        scale: float,
        kind: TokenLoss,
        factor_L: Tensor | None,
    ) -> Tensor:
        wants = [ctx.needs_input_grad[i] for i in (0, 1, 2, 4, 5)]
        beside = None if A_RD is None or B_VR is None else _Pair(A_RD, B_VR, scale, hidden_LD.dtype)
        grads = _Gradients.of(wants, (hidden_LD, weight_VD, bias_V, A_RD, B_VR))
        total = torch.zeros((), dtype=torch.float64, device=hidden_LD.device)
        rows, vocab = hidden_LD.shape[0], weight_VD.shape[0]
        few_sizes = compiles_shapes(hidden_LD.dtype, hidden_LD.device)
        # One buffer for all chunks: asking the system for a hundred megabytes costs it more time
        # than the softmax does.
        size = min(HEAD_CHUNK, rounded(rows) if few_sizes else rows)
        logits_CV = hidden_LD.new_empty(size, vocab)
        for start in range(0, rows, HEAD_CHUNK):
            part = slice(start, min(start + HEAD_CHUNK, rows))
            hidden, labels = hidden_LD[part], labels_L[part]
            count = len(hidden)
            if few_sizes:  # rows of zeros, whose logits nobody reads
                hidden = F.pad(hidden, (0, 0, 0, min(HEAD_CHUNK, rounded(count)) - count))
            logits = torch.mm(hidden, weight_VD.t(), out=logits_CV[: len(hidden)])
            if bias_V is not None:
                logits.add_(bias_V)
            low_CR = None if beside is None else hidden @ beside.A_RD.t()
            if beside is not None and low_CR is not None:
                logits.addmm_(low_CR, beside.B_VR.t(), alpha=beside.scale)
            slope = logits[:count] if any(wants) else None
            factor_C = None if factor_L is None else factor_L[part]
            total += _loss_and_slope(logits[:count], labels, slope, kind, factor_C)
            if not any(wants):
                continue
            logits[count:].zero_()
            grads.add(part, logits, hidden, weight_VD)
            if beside is not None and low_CR is not None:
                grads.add_pair(part, logits, hidden, low_CR, beside)
        ctx.save_for_backward(*grads.tensors())
        return total.to(torch.promote_types(hidden_LD.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, A, B = (
            None if g is None else g * grad.to(g.dtype) for g in ctx.saved_tensors
        )
        return hidden, weight, bias, None, A, B, None, None, None


class _Pair:
    """A and B in the number format of the hidden states, as every low-rank path computes."""

    def __init__(self, A_RD: Tensor, B_VR: Tensor, scale: float, dtype: torch.dtype) -> None:
        self.A_RD, self.B_VR, self.scale = A_RD.to(dtype), B_VR.to(dtype), scale


@dataclass
class _Gradients:
    """What is wanted of the gradients, of the shapes of what they are of; None for what is not."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    A: Tensor | None
    B: Tensor | None

    @classmethod
    def of(cls, wants: Sequence[bool], tensors: Sequence[Tensor | None]) -> "_Gradients":
        return cls(
            *(
                torch.zeros_like(tensor) if want and tensor is not None else None
                for want, tensor in zip(wants, tensors, strict=True)
            )
        )

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.hidden, self.weight, self.bias, self.A, self.B

    def add(self, part: slice, slope_CV: Tensor, hidden_CD: Tensor, weight_VD: Tensor) -> None:
        count = part.stop - part.start
        if self.hidden is not None:
            self.hidden[part] = torch.mm(slope_CV, weight_VD)[:count]
        if self.weight is not None:
            self.weight.addmm_(slope_CV.t(), hidden_CD)
        if self.bias is not None:
            self.bias.add_(slope_CV[:count].sum(0))

    def add_pair(
        self, part: slice, slope_CV: Tensor, hidden_CD: Tensor, low_CR: Tensor, pair: _Pair
    ) -> None:
        count = part.stop - part.start
        back_CR = slope_CV @ pair.B_VR
        if self.hidden is not None:
            self.hidden[part].addmm_(back_CR[:count], pair.A_RD, alpha=pair.scale)
        # A and B are float32 at least: the sum over chunks is too.
        if self.A is not None:
            self.A.add_(back_CR.t() @ hidden_CD, alpha=pair.scale)
        if self.B is not None:
            self.B.add_(slope_CV.t() @ low_CR, alpha=pair.scale)


def label_loss(
    logits_LV: Tensor,
    labels_L: Tensor,
    kind: TokenLoss = PLAIN,
    factor_L: Tensor | None = None,
) -> Tensor:
    """Summed nats of the labels by logits that are there: Σ_l -log softmax(logits_l)[label_l].

    Differentiable in the logits. torch's own cross-entropy gives a token whose probability rounds to
    1 in float32 (a lead above 16.6 nats) a loss and a gradient of zero; this one does not.

    Args:
        logits_LV: of the positions that predict a label, in any floating format.
        labels_L: int64 token ids.
        kind: the form of a token's loss.
        factor_L: of each token's loss, float32; None where all are 1.

    Returns:
        A scalar in float32 at least.
    """
    return cast(Tensor, _LabelLoss.apply(logits_LV, labels_L, kind, factor_L))


class _LabelLoss(torch.autograd.Function):
    """Σ cross-entropy(logits, labels); softmax - onehot is formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, logits_LV: Tensor, labels_L: Tensor, kind: TokenLoss, factor_L: Tensor | None
    ) -> Tensor:
        wide = torch.promote_types(logits_LV.dtype, torch.float32)
        wanted = ctx.needs_input_grad[0]
        slope_LV = torch.empty_like(logits_LV, dtype=wide) if wanted else None
        total = _loss_and_slope(logits_LV, labels_L, slope_LV, kind, factor_L)
        ctx.save_for_backward(slope_LV)
        ctx.format = logits_LV.dtype
        return total.to(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        (slope_LV,) = ctx.saved_tensors
        return (None if slope_LV is None else (slope_LV * grad).to(ctx.format)), None, None, None


def label_nats(log_p_CV: Tensor, labels_C: Tensor) -> Tensor:
    """-log p of each label, (C,), by the log-probabilities of all words.

    A probability near 1 is 1 - Σ of the others: its own logarithm rounds to zero.
    """
    nats_C = -log_p_CV.gather(1, labels_C[:, None])[:, 0]
    sure = (nats_C < SURE_NATS).nonzero()[:, 0]
    if len(sure):
        others = log_p_CV[sure].exp_().scatter_(1, labels_C[sure, None], 0.0)
        nats_C[sure] = -torch.log1p(-others.sum(1))
    return nats_C


def _loss_and_slope(
    logits_CV: Tensor,
    labels_C: Tensor,
    slope_CV: Tensor | None,
    kind: TokenLoss,
    factor_C: Tensor | None,
) -> Tensor:
    if kind.is_plain and factor_C is None:
        return _nll_and_slope(logits_CV, labels_C, slope_CV)
    at_once = SOFTMAX_ROWS if logits_CV.device.type == "cpu" else HEAD_CHUNK
    return shaped_loss_and_slope(logits_CV, labels_C, slope_CV, kind, factor_C, at_once)


def _nll_and_slope(logits_CV: Tensor, labels_C: Tensor, slope_CV: Tensor | None) -> Tensor:
    """Σ cross-entropy, in float64; softmax - onehot goes to `slope`, which may be the logits."""
    total: Tensor = dispatch.run(
        "nll_and_slope", _plain_nll_and_slope, logits_CV, labels_C, slope_CV
    )[0]
    return total


def _plain_nll_and_slope(
    logits_CV: Tensor, labels_C: Tensor, slope_CV: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """By torch's own operations; a row whose label is negative counts for nothing.

    In float32 at least, whatever the base is kept in, because the sum runs over the vocabulary; a
    few rows at a time, which stay in the cache. The slope of a label, p - 1, is minus the sum of the
    others: where p rounds to 1 the difference is zero, and the sum is not.
    """
    wide = torch.promote_types(logits_CV.dtype, torch.float32)
    total = torch.zeros((), dtype=torch.float64, device=logits_CV.device)
    on_cpu = logits_CV.device.type == "cpu"
    at_once = SOFTMAX_ROWS if on_cpu else HEAD_CHUNK
    # Asking a GPU would wait for it.
    spare_C1 = None if on_cpu and not (labels_C < 0).any() else (labels_C < 0)[:, None]
    labels_C = labels_C if spare_C1 is None else labels_C.clamp_min(0)
    log_p_RV = logits_CV.new_empty(min(at_once, len(logits_CV)), logits_CV.shape[1], dtype=wide)
    for start in range(0, len(logits_CV), at_once):
        part = logits_CV[start : start + at_once]
        labels = labels_C[start : start + at_once, None]
        log_p = log_p_RV[: len(part)].copy_(part)
        torch.log_softmax(log_p, 1, out=log_p)
        nats = -log_p.gather(1, labels)
        others = log_p.exp_().scatter_(1, labels, 0.0).sum(1, keepdim=True)
        nats = torch.where(nats < SURE_NATS, -torch.log1p(-others), nats)
        slope = log_p.scatter_(1, labels, -others)
        if spare_C1 is not None:
            spare = spare_C1[start : start + at_once]
            nats, slope = nats.masked_fill(spare, 0.0), slope.masked_fill_(spare, 0.0)
        total += nats.sum(dtype=torch.float64)
        if slope_CV is not None:
            slope_CV[start : start + at_once].copy_(slope)
    return total, slope_CV
