"""Cross-entropy from a chunk of logits in Triton, and its slope, a row to a program.

    nll = -log p(label),   slope = p - onehot(label),   p = softmax(logits)

With S = Σ_{j ≠ label} exp(l_j - m), kept apart from the label's own term, the slope at the label is -S / Z and
the loss log(1 + S) where the label leads: neither vanishes where p(label) rounds to 1.

Legend: C rows of the chunk, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_WIDEST = 4096


def nll_and_slope(
    logits_CV: Tensor, labels_C: Tensor, slope_CV: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Summed nats of the labels in float64, and softmax - onehot, written to `slope`.

    A row whose label is negative counts for nothing: 0 nats, and a slope of zeros.

    Args:
        logits_CV: of any number format.
        labels_C: int64.
        slope_CV: of any number format, rows of neighbours; it may be the logits. None: none is wanted.
    """
    if logits_CV.stride(-1) != 1:
        logits_CV = logits_CV.contiguous()
    slope = logits_CV if slope_CV is None else slope_CV
    rows, vocabulary = logits_CV.shape
    nll_C = torch.empty(rows, dtype=torch.float32, device=logits_CV.device)
    _label_nats[(rows,)](
        *(logits_CV, labels_C.contiguous(), nll_C, slope),
        *(logits_CV.stride(0), slope.stride(0), vocabulary),
        SLOPE=slope_CV is not None,
        BLOCK=min(_WIDEST, triton.next_power_of_2(vocabulary)),
        num_warps=8,
    )
    return nll_C.sum(dtype=torch.float64), slope_CV


@triton.jit
def _label_nats(
    logits, labels, nll, slopes, stride, slope_stride, vocabulary,
    SLOPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    slopes += row * slope_stride
    label = tl.load(labels + row)
    columns = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        at = start + columns
        value = tl.load(logits + at, mask=at < vocabulary, other=float("-inf")).to(tl.float32)
        top = tl.maximum(top, value)
    m = tl.max(top, axis=0)
    others = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocabulary, BLOCK):
        at = start + columns
        value = tl.load(logits + at, mask=at < vocabulary, other=float("-inf")).to(tl.float32)
        others += tl.where(at == label, 0.0, tl.exp(value - m))
    S = tl.sum(others, axis=0)
    own = tl.load(logits + tl.maximum(label, 0)).to(tl.float32) - m
    Z = S + tl.exp(own)
    # log(1 + S) by its series where 1 + S would round S away.
    small = S - S * S / 2 + S * S * S / 3
    lead = tl.where(S < 1e-3, small, tl.log(1.0 + S))
    loss = tl.where(own == 0.0, lead, tl.log(Z) - own)
    counts = label >= 0
    tl.store(nll + row, tl.where(counts, loss, 0.0))
    if SLOPE:
        for start in range(0, vocabulary, BLOCK):
            at = start + columns
            inside = at < vocabulary
            value = tl.load(logits + at, mask=inside, other=float("-inf")).to(tl.float32)
            slope = tl.where(at == label, -S, tl.exp(value - m)) / Z
            slope = tl.where(counts, slope, 0.0)
            tl.store(slopes + at, slope.to(slopes.dtype.element_ty), mask=inside)
