"""What changes a row of logits before a token is chosen: penalties, biases, exclusions, a grammar.

In the order of vLLM's sampler (vllm/v1/sample/sampler.py, 0.32), in float32. Of an answer whose
prompt holds the tokens P and which so far is o_1 … o_n, with c(t) the count of t among the o:

    1. a grammar excludes what it does not allow     logit = -inf
    2. allowed_ids exclude all others
    3. bad_ids: the last token of a word whose other tokens are the answer's last ones
    4. min_tokens: the end tokens, while n is less
    5. logit_bias                                    logit(t) += bias(t)
    6. repetition_penalty r, where t in P or c(t) > 0:
                                                     logit(t) = logit / r if logit > 0 else logit · r
    7. frequency f and presence p                    logit(t) -= f · c(t) + p · [c(t) > 0]

Each answer has a state of its own, so nothing depends on who else is in the step.
"""

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from lorakit.errors import InputError
from lorakit.serving.sampling import Adjusted, Matcher, Sampling


class NothingAllowedError(InputError):
    """What a request excludes leaves no token to choose."""


class Adjuster:
    """The state of one answer.

    Args:
        wish: of the request.
        prompt: token ids.
        ends: token ids that end the answer.
    """

    def __init__(self, wish: Sampling, prompt: Sequence[int], ends: Collection[int]) -> None:
        self.wish, self.ends = wish, ends
        self.matcher: Matcher | None = wish.grammar.start() if wish.grammar is not None else None
        self._prompt, self._answer = prompt, list[int]()
        self._counts_V: Tensor | None = None
        self._repeated_V: Tensor | None = None

    @property
    def complete(self) -> bool:
        """Whether the answer has a grammar, and may end here by it."""
        return self.matcher is not None and self.matcher.complete

    def take(self, id: int) -> None:
        """Go on by a token that was chosen.

        Raises:
            GrammarError: the grammar does not allow it.
        """
        self._answer.append(id)
        if self._counts_V is not None:
            self._counts_V[id] += 1
        if self._repeated_V is not None:
            self._repeated_V[id] = True
        if self.matcher is not None:
            self.matcher.take(id)

    def __call__(self, logits_V: Tensor) -> Adjusted:
        """The row as it is to be chosen from.

        Raises:
            NothingAllowedError: every token is excluded.
            InputError: the logits are not finite any more.
            GrammarError: the grammar's library fails.
        """
        wish = self.wish
        x_V = logits_V.to(torch.float32, copy=True)
        size = x_V.shape[0]
        reported_V = logits_V
        if self.matcher is not None:
            allowed_V = self.matcher.allowed(size).to(x_V.device)
            x_V.masked_fill_(~allowed_V, -math.inf)
            reported_V = x_V.clone()
        if wish.allowed_ids:
            only_V = torch.full_like(x_V, -math.inf)
            ids = torch.tensor(wish.allowed_ids, device=x_V.device)
            only_V[ids] = x_V[ids]
            x_V = only_V
        excluded = self._bad()
        if len(self._answer) < wish.min_tokens:
            excluded += [id for id in self.ends if id < size]
        if excluded:
            x_V[torch.tensor(excluded, device=x_V.device)] = -math.inf
        if wish.logit_bias:
            pairs = torch.tensor(wish.logit_bias, dtype=torch.float64)
            x_V[pairs[:, 0].long().to(x_V.device)] += pairs[:, 1].to(x_V)
        self._penalise(x_V)
        best = x_V.max().item()
        if math.isnan(best) or best == math.inf:
            raise InputError("penalties and biases this large make logits that are not finite")
        if best == -math.inf:
            raise NothingAllowedError(
                "no token is left to choose: what the request excludes (bad_words, "
                "allowed_token_ids, min_tokens, its schema or grammar) is everything"
            )
        return Adjusted(x_V, reported_V)

    def _bad(self) -> list[int]:
        """The tokens that would complete a word that must not come."""
        return [
            ids[-1]
            for ids in self.wish.bad_ids
            if len(ids) <= len(self._answer) + 1
            and (len(ids) == 1 or self._answer[1 - len(ids) :] == list(ids[:-1]))
        ]

    def _penalise(self, x_V: Tensor) -> None:
        """Repetition, then frequency and presence, in place."""
        wish, size = self.wish, x_V.shape[0]
        if wish.repetition_penalty != 1:
            if self._repeated_V is None:
                self._repeated_V = torch.zeros(size, dtype=torch.bool, device=x_V.device)
                ids = [id for id in (*self._prompt, *self._answer) if id < size]
                self._repeated_V[torch.tensor(ids, dtype=torch.long, device=x_V.device)] = True
            factor = wish.repetition_penalty
            scaled_V = torch.where(x_V > 0, x_V / factor, x_V * factor)
            x_V.copy_(torch.where(self._repeated_V, scaled_V, x_V))
        if wish.frequency_penalty or wish.presence_penalty:
            if self._counts_V is None:
                self._counts_V = torch.zeros(size, device=x_V.device)
                for id in self._answer:
                    self._counts_V[id] += 1
            x_V -= wish.frequency_penalty * self._counts_V
            x_V -= wish.presence_penalty * (self._counts_V > 0)
