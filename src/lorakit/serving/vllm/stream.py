"""A prompt -> vLLM's request; a piece of vLLM's stream -> an event. Pure.

Prompts go as token ids, put together here by each adapter's own template, and vLLM is asked for the
ids of its answers: templates, end tokens and figures so are the same whatever computes.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.errors import EngineError
from lorakit.serving.answers import CompletionEvent, Prompt
from lorakit.serving.sampling import Chosen

_TOKEN = "token_id:"


def request(prompt: Prompt, model: str) -> dict[str, Any]:
    """The body of POST /v1/completions for one answer.

    Args:
        prompt: what to generate from.
        model: what its adapter is called in vLLM.
    """
    wish = prompt.sampling
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt.ids),
        "max_tokens": prompt.most,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": wish.temperature,
        "top_p": wish.top_p,
        "top_k": wish.top_k or -1,
        "seed": seed_of(wish.seed, prompt.choice),
        "stop": list(prompt.stop),
        "stop_token_ids": sorted(prompt.ends),
        "ignore_eos": not prompt.ends,
        "return_token_ids": True,
    }
    if wish.logprobs is not None:
        body |= {"logprobs": wish.logprobs, "return_tokens_as_token_ids": True}
    return body | _more(prompt)


def _more(prompt: Prompt) -> dict[str, Any]:
    """What a request wishes beyond the usual, by vLLM's names; nothing where it wishes nothing."""
    wish = prompt.sampling
    more = {
        "min_p": wish.min_p,
        "frequency_penalty": wish.frequency_penalty,
        "presence_penalty": wish.presence_penalty,
        "repetition_penalty": wish.repetition_penalty,
        "logit_bias": {str(id): bias for id, bias in wish.logit_bias},
        "min_tokens": wish.min_tokens,
        "bad_words": list(wish.bad_words),
        "allowed_token_ids": list(wish.allowed_ids),
        "include_stop_str_in_output": prompt.stop_shown,
        # Marks of tool calls may be special tokens: vLLM shows all of those, or none.
        "skip_special_tokens": prompt.specials == frozenset(),
        "structured_outputs": dict(wish.grammar.spec) if wish.grammar is not None else None,
    }
    rest = {"repetition_penalty": 1.0, "skip_special_tokens": True}
    return {name: value for name, value in more.items() if value and value != rest.get(name)} | (
        {} if more["skip_special_tokens"] else {"skip_special_tokens": False}
    )


def seed_of(seed: int | None, choice: int) -> int | None:
    """The seed of one of a request's completions; each gets another one, always the same."""
    return None if seed is None else random.Random(f"{seed}/{choice}").getrandbits(62)


@dataclass(frozen=True)
class StreamChunk:
    """What a chunk of vLLM's stream adds to a completion.

    Attributes:
        text: whole characters.
        tokens: with log-probabilities where they were requested.
        finish: "stop" or "length" at the end.
        reused: tokens of the prompt that were in the cache, where the chunk says it.
    """

    text: str = ""
    tokens: tuple[Chosen, ...] = ()
    finish: str | None = None
    reused: int | None = None

    def event(self, choice: int, reused: int = 0) -> CompletionEvent:
        """As the event of an answer."""
        return CompletionEvent(choice, self.text, self.tokens, self.finish, reused)


def read(content: Mapping[str, Any], wanted: int | None) -> StreamChunk:
    """A piece of the stream.

    Args:
        content: the JSON of one of its events.
        wanted: how many of the likeliest tokens were requested; None for no report.

    Raises:
        EngineError: it is an error, or not what such a stream holds.
    """
    if "error" in content:
        raise EngineError(f"vLLM: {message_of(content)}")
    reused = (content.get("usage") or {}).get("prompt_tokens_details") or {}
    cached = reused.get("cached_tokens")
    choices = content.get("choices")
    if not choices:
        return StreamChunk(reused=cached)
    choice = choices[0]
    ids = choice.get("token_ids")
    if ids is None and choice.get("text"):
        raise EngineError("this vLLM gives no token ids beside its text: a newer one does")
    finish = choice.get("finish_reason")
    if finish not in (None, "stop", "length"):
        raise EngineError(f"vLLM ended the answer: {finish}")
    tokens = _tokens(ids or (), choice.get("logprobs"), wanted)
    return StreamChunk(choice.get("text") or "", tokens, finish, cached)


def message_of(content: Any) -> str:
    """What an error of vLLM's says, in whichever of its forms."""
    error = content.get("error", content) if isinstance(content, Mapping) else content
    return str(error.get("message", error) if isinstance(error, Mapping) else error)


def _tokens(
    ids: Sequence[int], logprobs: Mapping[str, Any] | None, wanted: int | None
) -> tuple[Chosen, ...]:
    if wanted is None or logprobs is None:
        return tuple(Chosen(int(id)) for id in ids)
    own, tops = logprobs["token_logprobs"], logprobs["top_logprobs"]
    return tuple(
        Chosen(int(id), logprob, _likeliest(top or {}, wanted))
        for id, logprob, top in zip(ids, own, tops, strict=True)
    )


def _likeliest(top: Mapping[str, float], wanted: int) -> tuple[tuple[int, float], ...]:
    """The likeliest, without the chosen one where that is not among them: vLLM always adds it."""
    ordered = sorted(top.items(), key=lambda item: -item[1])[:wanted]
    return tuple((int(name.removeprefix(_TOKEN)), logprob) for name, logprob in ordered)
