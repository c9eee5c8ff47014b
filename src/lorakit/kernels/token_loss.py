"""What one supervised token costs: its negative log-likelihood, or a form of it.

    ℓ = w · ((1 - ε) · -log p[label] + ε · (1/V) Σ_v -log p_v),    w = 1, or p[label] taken as a constant

ε > 0 is label smoothing (Szegedy et al., arXiv 1512.00567). w = p[label] is dynamic fine-tuning, DFT (Wu et al.,
arXiv 2508.05629): a token that the model holds for unlikely moves it less. Its gradient in the logits is
w · (p - (1 - ε) onehot - ε/V).

Legend: C tokens, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# A label with fewer nats than this has p > 1/2: 1 - Σ of the others is the more precise of the two.
SURE_NATS = 0.69


@dataclass(frozen=True)
class TokenLoss:
    """The form of a token's loss.

    Attributes:
        by_probability: w is the label's own probability.
        smoothing: ε, in [0, 1).
    """

    by_probability: bool = False
    smoothing: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether it is the negative log-likelihood."""
        return not self.by_probability and not self.smoothing


PLAIN = TokenLoss()


def shaped_loss_and_slope(
    logits_CV: Tensor,
    labels_C: Tensor,
    slope_CV: Tensor | None,
    kind: TokenLoss,
    factor_C: Tensor | None,
    at_once: int,
) -> Tensor:
    """Σ ℓ in float64; the gradient in the logits goes to `slope`, which may be the logits.

    In float32 at least. A row whose label is negative counts for nothing.

    Args:
        logits_CV: scores of all words.
        labels_C: int64 token ids.
        slope_CV: where the gradient goes; None where nobody wants it.
        kind: the form.
        factor_C: of each token's ℓ; None where all are 1.
        at_once: rows whose softmax is taken together.
    """
    wide = torch.promote_types(logits_CV.dtype, torch.float32)
    total = torch.zeros((), dtype=torch.float64, device=logits_CV.device)
    words = logits_CV.shape[1]
    for start in range(0, len(logits_CV), at_once):
        log_p = torch.log_softmax(logits_CV[start : start + at_once].to(wide), 1)
        wanted = labels_C[start : start + at_once, None]
        counts, labels = wanted >= 0, wanted.clamp_min(0)
        nats = -log_p.gather(1, labels)
        others = log_p.exp().scatter_(1, labels, 0.0).sum(1, keepdim=True)
        # Of a sure label the sum of the others is exact where its own logarithm and 1 - p are not.
        nats = torch.where(nats < SURE_NATS, -torch.log1p(-others), nats)
        weight = torch.exp(-nats) if kind.by_probability else torch.ones_like(nats)
        weight = weight * counts
        if factor_C is not None:
            weight = weight * factor_C[start : start + at_once, None]
        spread = -log_p.mean(1, keepdim=True) if kind.smoothing else 0.0
        loss = weight * ((1 - kind.smoothing) * nats + kind.smoothing * spread)
        total += loss.sum(dtype=torch.float64)
        if slope_CV is not None:
            slope = log_p.exp_().scatter_(1, labels, -others)
            if kind.smoothing:
                slope.sub_(kind.smoothing / words)
                slope.scatter_add_(1, labels, torch.full_like(nats, kind.smoothing))
            slope_CV[start : start + at_once].copy_(slope.mul_(weight))
    return total
