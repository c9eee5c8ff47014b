"""What a request wishes of its answers -> how their tokens are chosen.

Everything that depends on the tokenizer and on the model's size is checked here, so that a request
that cannot be computed is refused alone, before it is in a step with others.
"""

from collections.abc import Sequence
from typing import Any

from lorakit.execution.tools.form import ToolForm
from lorakit.serving.grammar import CompiledGrammar, Grammars
from lorakit.serving.http.problems import bad
from lorakit.serving.http.schema import ChatRequest, CompletionRequest
from lorakit.serving.sampling import Sampling
from lorakit.serving.tools.forcing import forced

Request = ChatRequest | CompletionRequest


class Wishes:
    """Reads wishes. Used by one thread at a time.

    Args:
        tokenizer: the base's.
        embeddings: tokens that the model has embeddings for, fewer or more than the tokenizer knows.
    """

    def __init__(self, tokenizer: Any, embeddings: int) -> None:
        self.tokenizer, self.embeddings = tokenizer, embeddings
        self.vocabulary = min(len(tokenizer), embeddings)
        self._grammars = Grammars(tokenizer, embeddings)
        self._specials = {
            str(token): int(id)
            for id, token in tokenizer.added_tokens_decoder.items()
            if token.special
        }

    def shortened(self, ids: list[int], request: Request, longest: int) -> list[int]:
        """A prompt's tokens: all of them that the request wants to be read, the last ones.

        Raises:
            Problem: one of them is none of the model's.
        """
        most = request.truncate_prompt_tokens
        if most is not None:
            most = longest if most == -1 else most
            ids = ids[max(0, len(ids) - most) :]
        self._check("the prompt", ids)
        return ids

    def sampling(self, request: Request, ends: frozenset[int], form: ToolForm | None) -> Sampling:
        """How tokens are chosen.

        Args:
            request: of the client.
            ends: token ids that end its answers.
            form: how its answers write tool calls, where they may call tools.

        Raises:
            Problem: a token is none of the model's.
            ConfigError: a schema or grammar cannot be followed.
        """
        bias = tuple((int(id), value) for id, value in request.logit_bias.items())
        self._check("logit_bias", [id for id, _ in bias])
        self._check("stop_token_ids", request.stop_token_ids)
        allowed = request.allowed_token_ids or ()
        self._check("allowed_token_ids", allowed)
        return Sampling(
            temperature=request.warmth,
            top_p=request.top_p,
            top_k=max(0, request.top_k),
            seed=request.seed,
            logprobs=request.reported,
            min_p=request.min_p,
            frequency_penalty=request.frequency_penalty,
            presence_penalty=request.presence_penalty,
            repetition_penalty=request.repetition_penalty,
            logit_bias=bias,
            min_tokens=request.min_tokens,
            bad_words=tuple(dict.fromkeys(request.bad_words)),
            bad_ids=self._bad(request.bad_words),
            allowed_ids=tuple(dict.fromkeys(allowed)),
            grammar=self._grammar(request, ends, form),
        )

    def _grammar(
        self, request: Request, ends: frozenset[int], form: ToolForm | None
    ) -> CompiledGrammar | None:
        if isinstance(request, ChatRequest) and request.forced and form is not None:
            tools = [t for t in request.tools if t["function"]["name"] in request.forced]
            text = forced(form, tools, self._specials, several=request.parallel_tool_calls)
            return self._grammars.compile("grammar", text, ends)
        if request.constraint is None:
            return None
        return self._grammars.compile(*request.constraint, ends)

    def _bad(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Words in tokens: at the beginning of a text and, where it is as long, after a space.

        As vLLM takes them (`SamplingParams.update_from_tokenizer`).

        Raises:
            Problem: a word has no tokens.
        """
        found: list[tuple[int, ...]] = []
        for word in dict.fromkeys(words):
            bare = word.lstrip()
            ids, spaced = (
                tuple(int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"])
                for text in (bare, " " + bare)
            )
            if not ids:
                raise bad(f"bad_words: {word!r} has no tokens")
            found.append(ids)
            if spaced and spaced[0] != ids[0] and len(spaced) == len(ids):
                found.append(spaced)
        self._check("bad_words", [id for ids in found for id in ids])
        return tuple(found)

    def _check(self, what: str, ids: Sequence[int]) -> None:
        """See that tokens are the model's.

        Raises:
            Problem: one is not; the text names it.
        """
        id = next((id for id in ids if id >= self.vocabulary), None)
        if id is None:
            return
        if id < len(self.tokenizer):
            text = self.tokenizer.convert_ids_to_tokens(id)
            raise bad(
                f"{what} has the token {id} ({text!r}), which the tokenizer knows and the model, with "
                f"embeddings for {self.embeddings} tokens, does not: leave it out"
            )
        raise bad(f"{what} has the token {id}, which is beyond the vocabulary of {self.vocabulary}")
