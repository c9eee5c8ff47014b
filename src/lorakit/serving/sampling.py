"""The next token of each sequence, from its logits and nothing else.

A sequence draws one number u in [0, 1) a token from a generator of its own, seeded by its request,
and takes the token at which the cumulated probability passes u. What it gets so does not depend on
who else is in the step.

    p = softmax(logits / temperature), limited to tokens at least min_p times as likely as the
    likeliest, then to the top_k likeliest, then to the fewest likeliest that hold top_p of what is
    left, then made to sum to 1 again

What changes the logits before that (penalties, biases, grammars) is in adjusting.py.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

# Enough of the likeliest tokens for most top_p; sorting a whole vocabulary takes milliseconds.
_LIKELIEST = 256
LEAST_LOGPROB = -9999.0
"""Reported for a token that is excluded."""


class Matcher(Protocol):
    """How far one answer has come in its grammar."""

    def allowed(self, size: int) -> Tensor:
        """Which of `size` tokens may come next, (size,) of bool; the end tokens where it may end.

        Raises:
            GrammarError: the library cannot say.
        """

    def take(self, id: int) -> None:
        """Go on by a token.

        Raises:
            GrammarError: the grammar does not allow it.
        """

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""


class Grammar(Protocol):
    """What an answer has to look like."""

    @property
    def spec(self) -> Mapping[str, Any]:
        """As vLLM takes it in `structured_outputs`."""

    def start(self) -> Matcher:
        """A matcher for one answer."""


@dataclass(frozen=True)
class Sampling:
    """How a request wants its tokens chosen; fields and their order of effect are vLLM's.

    Attributes:
        temperature: 0 takes the likeliest.
        top_p: share of probability that the candidates hold.
        top_k: number of candidates, 0 for all.
        seed: of the generator; None draws one.
        logprobs: how many of the likeliest tokens to report beside the chosen one; None for no
            report. They are of the model's own distribution, before penalties, temperature and
            limits; with a grammar, of the tokens that it allows.
        min_p: least probability of a candidate, as a share of the likeliest one's.
        frequency_penalty: taken from a token's logit for each time it is in the answer so far.
        presence_penalty: taken once where it is in the answer at all.
        repetition_penalty: divides (multiplies, where negative) the logit of each token that is in
            the prompt or in the answer.
        logit_bias: added to the logits of these tokens: (id, bias) pairs.
        min_tokens: as long as the answer has fewer tokens, none of its end tokens is chosen.
        bad_words: texts that the answer never completes.
        bad_ids: those in tokens.
        allowed_ids: the only tokens that are chosen; empty for all.
        grammar: what the answer has to look like, None for anything.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    logprobs: int | None = None
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    bad_words: tuple[str, ...] = ()
    bad_ids: tuple[tuple[int, ...], ...] = ()
    allowed_ids: tuple[int, ...] = ()
    grammar: Grammar | None = None

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before a token is chosen from them."""
        return bool(
            self.frequency_penalty
            or self.presence_penalty
            or self.repetition_penalty != 1
            or self.logit_bias
            or self.min_tokens
            or self.bad_ids
            or self.allowed_ids
            or self.grammar
        )

    def generator(self, choice: int) -> random.Random:
        """The generator of one of the request's completions."""
        return random.Random(None if self.seed is None else f"{self.seed}/{choice}")


@dataclass(frozen=True)
class Chosen:
    """A token, its natural log-probability, and the likeliest ones with theirs where requested."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = field(default=())


@dataclass(frozen=True)
class Adjusted:
    """Logits of a row as they were changed for it.

    Attributes:
        logits: (vocabulary,), to choose from; -inf where a token is excluded.
        reported: (vocabulary,), to take log-probabilities from.
    """

    logits: Tensor
    reported: Tensor


Adjust = Callable[[Tensor], Adjusted]
"""Changes one row of logits, (vocabulary,), which it leaves as it is."""


@torch.no_grad()
def choose(
    logits_LV: Tensor,
    wishes: Sequence[Sampling],
    generators: Sequence[random.Random],
    adjusts: Mapping[int, Adjust] | None = None,
) -> list[Chosen | Exception | None]:
    """One token for each row of logits; None for a row that is not finite.

    Args:
        logits_LV: (L, vocabulary).
        wishes: of each row's request.
        generators: of each row's sequence; one number is drawn where the temperature is above 0.
        adjusts: what changes rows before, by their number.

    Returns:
        What a row's own wishes raise stands in its place: it concerns no other row.
    """
    best_L, greedy_L = (x.tolist() for x in logits_LV.max(dim=-1))
    out: list[Chosen | Exception | None] = []
    for row, (wish, generator) in enumerate(zip(wishes, generators, strict=True)):
        # max gives NaN where there is one; +inf says as little about what comes next.
        if not math.isfinite(best_L[row]):
            out.append(None)
            continue
        try:
            logits_V, reported_V, id = logits_LV[row], logits_LV[row], greedy_L[row]
            if adjusts and (adjust := adjusts.get(row)) is not None:
                adjusted = adjust(logits_V)
                logits_V, reported_V = adjusted.logits, adjusted.reported
                id = int(logits_V.argmax())
            if wish.temperature > 0:
                id = _draw(logits_V, wish, generator.random())
            out.append(_reported(reported_V, id, wish.logprobs))
        except Exception as error:
            out.append(error)
    return out


def _draw(logits_V: Tensor, wish: Sampling, u: float) -> int:
    scaled_V = logits_V.float() / wish.temperature
    if wish.min_p:
        least = scaled_V.max() + math.log(wish.min_p)
        scaled_V = scaled_V.masked_fill(scaled_V < least, -math.inf)
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
        # JSON knows no -inf; vLLM gives the same number in its place.
        values = values.clamp(min=LEAST_LOGPROB)
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Chosen(id, max(logs_V[id].item(), LEAST_LOGPROB), top)
