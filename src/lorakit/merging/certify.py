"""How far a merged model's logits are from its adapter's: the certificate.

Over the tokens of some probe texts, with p the adapter's distribution of the next token and q
the merged model's:

    largest logit difference   max |z_p - z_q| over tokens and vocabulary
    KL                         mean over tokens of sum_v p_v (log p_v - log q_v), nats per token
    argmax agreement           share of tokens for which both rate the same token highest

Merging in float32 changes nothing but the order of additions, so the logits themselves must
agree, to what float32 can tell: two orders of addition in one model differ by some 1e-6 of its
largest logit. A recurrence or a router enlarges that difference, some by a thousand. Where the logits
differ by more than the fixed tolerance, the model's own rounding is measured (rounding.py), and the
logits must agree to a few times that. Rounding W + s·B·A to 16 bits moves every weight by up to half a unit in its last place,
which no logit tolerance fits at all sizes; there the distributions must agree.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorakit.errors import ConfigError
from lorakit.execution.trial import row_logits


@dataclass(frozen=True)
class Tolerance:
    """What a merged model may differ by.

    Attributes:
        logits: largest logit difference, for float32 and float64 ...
        logits_relative: ... and this share of the largest logit on top of it.
        roundings: ... or, where that is more, this many times the model's own rounding; ...
        logits_most: ... but never more than this share of the largest logit.
        kl: mean KL in nats per token, for narrower formats. Measured on SmolLM2-135M: 1e-4.
        argmax: least share of tokens with the same first choice, for narrower formats. Measured
            there: 99 %.
    """

    logits: float = 1e-4
    logits_relative: float = 1e-5
    roundings: float = 4.0
    logits_most: float = 1e-2
    kl: float = 5e-3
    argmax: float = 0.95

    def logit_limit(self, largest_logit: float, rounding: float = 0.0) -> float:
        """The largest logit difference that passes in float32 and float64.

        Args:
            largest_logit: largest absolute logit of the adapter.
            rounding: what rounding alone does to this model's logits; 0 where it was not measured.
        """
        fixed = self.logits + self.logits_relative * largest_logit
        measured = min(self.roundings * rounding, self.logits_most * largest_logit)
        return max(fixed, measured)


@dataclass(frozen=True)
class LogitComparison:
    """One number format, adapter against merged model.

    Attributes:
        dtype: of the merged weights.
        arithmetic: how the logits were computed.
        tokens: tokens compared.
        largest_logit: largest absolute logit of the adapter.
        largest_logit_difference, mean_kl, argmax_agreement: see this module's text.
        passed: whether they lie within the tolerance for this format.
        rounding: largest logit difference that rounding alone makes in this model; None where it was
            not measured, as the fixed tolerance was enough.
    """

    dtype: str
    arithmetic: str
    tokens: int
    largest_logit: float
    largest_logit_difference: float
    mean_kl: float
    argmax_agreement: float
    passed: bool
    rounding: float | None = None

    def __str__(self) -> str:
        own = "" if self.rounding is None else f" (rounding alone: {self.rounding:.2g})"
        return (
            f"{self.dtype} ({self.arithmetic}): largest logit difference "
            f"{self.largest_logit_difference:.2g} (of {self.largest_logit:.3g}), KL {self.mean_kl:.2g} nats per token, argmax "
            f"agreement {self.argmax_agreement:.2%} over {self.tokens:,} tokens{own}"
        )


class Weights(Protocol):
    """What merge_files.py found when it read the merged tensors back."""

    @property
    def passed(self) -> bool:
        """Whether every tensor is what it should be."""

    def to_dict(self) -> dict[str, Any]:
        """JSON's own types."""


@dataclass(frozen=True)
class Certificate:
    """What was compared after one merge, and the tolerance it was held to.

    Attributes:
        comparisons: of logits; empty where the model was too large to run.
        tolerance: of the logits.
        weights: of the written tensors, where they were merged file by file.
        made_of: the base's fingerprint and the adapters with their weights.
        notes: what was not compared, and why.
    """

    comparisons: tuple[LogitComparison, ...]
    tolerance: Tolerance
    weights: Weights | None = None
    made_of: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything that was compared lies within its tolerance."""
        weights = self.weights is None or self.weights.passed
        return weights and all(comparison.passed for comparison in self.comparisons)

    def sentences(self) -> list[str]:
        """One sentence a comparison, for people."""
        weights = [] if self.weights is None else [str(self.weights)]
        return [*weights, *(str(comparison) for comparison in self.comparisons), *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """JSON's own types, as in certificate.json."""
        return {
            "passed": self.passed,
            "made_of": self.made_of,
            "weights": None if self.weights is None else self.weights.to_dict(),
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "tolerance": asdict(self.tolerance),
            "notes": list(self.notes),
        }


def certify(
    adapted: nn.Module,
    merged: nn.Module,
    probes: Iterable[Sequence[int]],
    *,
    tolerance: Tolerance | None = None,
) -> Certificate:
    """Compare a model that has an adapter with a merged one, as they are, on some token ids.

    Args:
        adapted: with pairs attached; called as `model(input_ids=…).logits`.
        merged: without; its dtype chooses which tolerance applies.
        probes: sequences of token ids.

    Raises:
        ConfigError: there are no probes.
    """
    held_to = tolerance or Tolerance()
    texts = list(probes)
    kept = floating_dtype(merged)
    made = compare(
        probe_logits(adapted, texts),
        probe_logits(merged, texts),
        dtype=kept,
        arithmetic=f"{kept} arithmetic".removeprefix("torch."),
        tolerance=held_to,
    )
    return Certificate((made,), held_to)


def compare(
    adapter_TV: Tensor,
    merged_TV: Tensor,
    *,
    dtype: torch.dtype,
    arithmetic: str,
    tolerance: Tolerance,
    rounding: float | None = None,
) -> LogitComparison:
    """Compare two sets of logits.

    Args:
        adapter_TV: (tokens, vocabulary), float32.
        merged_TV: likewise.
        dtype: of the merged weights; chooses which tolerance applies.
        arithmetic: how they were computed, in words.
        tolerance: what they may differ by.
        rounding: what rounding alone does to the logits of this model, where that was measured.
    """
    scale = adapter_TV.abs().max().item()
    largest = (adapter_TV - merged_TV).abs().max().item()
    log_p, log_q = adapter_TV.log_softmax(-1), merged_TV.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    same = (adapter_TV.argmax(-1) == merged_TV.argmax(-1)).float().mean().item()
    # A NaN compares false with every limit and so fails.
    if dtype in (torch.float32, torch.float64):
        passed = largest <= tolerance.logit_limit(scale, rounding or 0.0)
    else:
        passed = kl <= tolerance.kl and same >= tolerance.argmax
    name = str(dtype).removeprefix("torch.")
    tokens = len(adapter_TV)
    return LogitComparison(name, arithmetic, tokens, scale, largest, kl, same, passed, rounding)


@torch.no_grad()
def probe_logits(model: nn.Module, probes: Sequence[Sequence[int]]) -> Tensor:
    """(tokens, vocabulary) float32 logits on the CPU, each probe run by itself in eval mode.

    Raises:
        ConfigError: there are no probes.
    """
    if not any(len(probe) for probe in probes):
        raise ConfigError("a certificate needs probe texts, and there are none")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        rows = [
            row_logits(model, torch.as_tensor(probe, device=device).view(-1))
            for probe in probes
            if len(probe)
        ]
    finally:
        model.train(was_training)
    return torch.cat(rows).float().cpu()


def floating_dtype(model: nn.Module) -> torch.dtype:
    """The format that most of a model's floating-point numbers are kept in, pairs left out.

    Raises:
        ConfigError: it has none.
    """
    counts: dict[torch.dtype, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and name.rsplit(".", 1)[-1] not in ("A", "B"):
            counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    if not counts:
        raise ConfigError("this model has no floating-point weights to merge into")
    return max(counts, key=lambda kind: counts[kind])
