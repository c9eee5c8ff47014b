"""What a comparison came to, as a value; `wording` says it in sentences.

With d the arm's held-out loss less the reference's, its interval [low, high], and g what the
reference gained over the base:

    better              high < 0
    indistinguishable   low <= 0 <= high
    close               0 < low, high <= margin · g     behind, by less than the margin
    behind              0 < low, high > margin · g      behind, perhaps by more than the margin
    worth it            low > margin · g                full fine-tuning is worth it here
"""

from dataclasses import dataclass
from typing import Literal

from lorakit.evaluation.crossed import CrossedInterval

VerdictKind = Literal["better", "indistinguishable", "close", "behind", "worth it"]


@dataclass(frozen=True)
class Verdict:
    """A judgement on quality alone.

    Attributes:
        kind: see above.
        difference: d, in nats per token.
        gain: of the reference over the base, in nats per token.
        margin: share of the gain that the savings are worth.
        gain_kept: share of the gain that the arm has; None where nothing was gained.
    """

    kind: VerdictKind
    difference: CrossedInterval
    gain: float
    margin: float
    gain_kept: float | None


def judge(d: CrossedInterval, gain: float, margin: float) -> Verdict:
    """Judge a difference of held-out loss.

    Args:
        d: arm - reference, in nats per token.
        gain: of the reference over the base, in nats per token.
        margin: share of the gain that the savings are worth.
    """
    kind: VerdictKind = "worth it"
    if d.high < 0:
        kind = "better"
    elif d.low <= 0:
        kind = "indistinguishable"
    elif gain > 0 and d.high <= margin * gain:
        kind = "close"
    elif gain > 0 and d.low <= margin * gain:
        kind = "behind"
    return Verdict(kind, d, gain, margin, 1 - d.mean / gain if gain > 0 else None)
