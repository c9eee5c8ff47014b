"""The next token of each sequence, from its logits and nothing else.

A sequence draws one number u in [0, 1) a token from a generator of its own, seeded by its request,
and takes the token at which the cumulated probability passes u. What it gets so does not depend on
who else is in the step.

    p = softmax(logits / temperature), limited to the top_k likeliest, then to the fewest likeliest
    that hold top_p of what is left, then made to sum to 1 again
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Enough of the likeliest tokens for most top_p; sorting a whole vocabulary takes milliseconds.
_LIKELIEST = 256


@dataclass(frozen=True)
class Sampling:
    """How a request wants its tokens chosen.

    Attributes:
        temperature: 0 takes the likeliest.
        top_p: share of probability that the candidates hold.
        top_k: number of candidates, 0 for all.
        seed: of the generator; None draws one.
        logprobs: how many of the likeliest tokens to report beside the chosen one; None for no
            report. They are of the model's own distribution, before temperature and limits.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    logprobs: int | None = None

    def generator(self, choice: int) -> random.Random:
        """The generator of one of the request's completions."""
        return random.Random(None if self.seed is None else f"{self.seed}/{choice}")


@dataclass(frozen=True)
class Chosen:
    """A token, its natural log-probability, and the likeliest ones with theirs where requested."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = field(default=())


@torch.no_grad()
def choose(
    logits_LV: Tensor, wishes: Sequence[Sampling], generators: Sequence[random.Random]
) -> list[Chosen | None]:
    """One token for each row of logits; None for a row that is not finite.

    Args:
        logits_LV: (L, vocabulary).
        wishes: of each row's request.
        generators: of each row's sequence; one number is drawn where the temperature is above 0.
    """
    best_L, greedy_L = (x.tolist() for x in logits_LV.max(dim=-1))
    # max gives NaN where there is one; +inf says as little about what comes next.
    finite = [value == value and abs(value) != float("inf") for value in best_L]
    out: list[Chosen | None] = []
    for row, (wish, generator) in enumerate(zip(wishes, generators, strict=True)):
        if not finite[row]:
            out.append(None)
            continue
        id = greedy_L[row]
        if wish.temperature > 0:
            id = _draw(logits_LV[row], wish, generator.random())
        out.append(_reported(logits_LV[row], id, wish.logprobs))
    return out


def _draw(logits_V: Tensor, wish: Sampling, u: float) -> int:
    scaled_V = logits_V.float() / wish.temperature
    if not wish.top_k and wish.top_p >= 1:
        return _at(torch.softmax(scaled_V, dim=-1), u)
    size = scaled_V.shape[0]
    count = min(wish.top_k or size, size)
    if wish.top_p < 1 and count > _LIKELIEST:
        values, ids = scaled_V.topk(_LIKELIEST)
        share = torch.exp(values - torch.logsumexp(scaled_V, dim=-1)).sum().item()
        # With a top_k as well, its cut comes first and top_p is of what that leaves.
        if wish.top_k or share < wish.top_p:
            values, ids = scaled_V.topk(count)
            total = torch.logsumexp(values, dim=-1)
        else:
            total = torch.logsumexp(scaled_V, dim=-1)
    else:
        values, ids = scaled_V.topk(count)
        total = torch.logsumexp(values, dim=-1)
    p = torch.exp(values - total)
    if wish.top_p < 1:
        before = p.cumsum(dim=0) - p
        p = p[before < wish.top_p]
    return int(ids[_at(p / p.sum(), u)])


def _at(p: Tensor, u: float) -> int:
    """The first index whose cumulated probability is above u."""
    cumulated = p.double().cumsum(dim=0)
    at = int(torch.searchsorted(cumulated, u * cumulated[-1].item(), right=True))
    return min(at, p.shape[0] - 1)


def _reported(logits_V: Tensor, id: int, wanted: int | None) -> Chosen:
    if wanted is None:
        return Chosen(id)
    logs_V = torch.log_softmax(logits_V.float(), dim=-1)
    top: tuple[tuple[int, float], ...] = ()
    if wanted:
        values, ids = logs_V.topk(min(wanted, logs_V.shape[0]))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Chosen(id, logs_V[id].item(), top)
