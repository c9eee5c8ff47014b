"""Example -> token ids and their loss mask, by a template.

An example is first written as segments of text, each of which is supervised or not:

    chat   "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n"   "Hello!<|im_end|>"
    raw    "Q: Hi A:"                                                 " Hello!"  + the end token
                                             not supervised         supervised

and then tokenized so that the prompt at inference is, token for token, the beginning of the
training row (`tokenize`). What follows the last supervised token is left out: in a causal model it
cannot change the loss.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray

from lorakit.data.chat import ChatWriter, Span, special_texts
from lorakit.data.shapes import Example, Message
from lorakit.data.table import Encoded
from lorakit.data.template import Template, Tokenizer
from lorakit.errors import ConfigError, DataError


@dataclass(frozen=True)
class TextSegment:
    """A segment of a row's text, and whether its tokens are supervised."""

    text: str
    supervised: bool


def encode(example: Example, tokenizer: Tokenizer, template: Template) -> Encoded:
    """One example as tokens; see `encode_all`."""
    return next(encode_all([example], tokenizer, template))


def encode_all(
    examples: Iterable[Example], tokenizer: Tokenizer, template: Template, chunk: int = 256
) -> Iterator[Encoded]:
    """Examples as tokens, in their order, `chunk` of them tokenized at once.

    Supervised are every token of a completion or an assistant message and the token that ends it
    (the chat template's end of turn, or the tokenizer's eos), but not the newline after that; and
    every token of a plain text and its eos. An assistant message with "weight": 0 is not
    supervised.

    Raises:
        DataError: the template refuses the example, or no token of it is supervised.
    """
    rest, bos_id, specials = iter(examples), _bos(tokenizer), special_texts(tokenizer)
    while batch := list(islice(rest, chunk)):
        texts = [_segments(example, tokenizer, template, specials) for example in batch]
        tokens = tokenize([[s.text for s in segments] for segments, _ in texts], tokenizer)
        for example, (segments, ended), (ids, counts) in zip(batch, texts, tokens, strict=True):
            mask = [s.supervised for s in segments]
            if template.kind == "raw" or example.text is not None:
                bos = [] if ids[:1] == bos_id else bos_id
                ids, counts, mask = bos + ids, [len(bos), *counts], [False, *mask]
            if not ended:
                ids, counts, mask = [*ids, _eos(tokenizer)], [*counts, 1], [*mask, True]
            weight = np.repeat(np.array(mask, dtype=np.uint8), counts)
            weight[:1] = 0
            if not weight.any():
                raise DataError(
                    f"{example.origin}: no token of the row is supervised, so there is nothing to "
                    "learn from it"
                )
            yield Encoded(np.array(ids, dtype=np.int32), weight, example.origin)


def encode_prompt(example: Example, tokenizer: Tokenizer, template: Template) -> NDArray[np.int32]:
    """The prompt's tokens: the beginning of `encode` of the same example, up to the answer.

    The prompt of a conversation is everything before its last assistant message (all of it where
    there is none). Returns int32 (T,).

    Raises:
        DataError: the example is plain text, or the template refuses it.
    """
    if example.text is not None:
        raise DataError(
            f"{example.origin}: a row of plain text has no prompt, so there is nothing to generate from"
        )
    if template.kind == "raw":
        _only_prompts(example)
        segments = [TextSegment(example.prompt or "", False)]
    else:
        messages = _messages(example, template)
        stop = next(
            (i for i in reversed(range(len(messages))) if messages[i]["role"] == "assistant"),
            len(messages),
        )
        writer = ChatWriter(example, tokenizer, template, special_texts(tokenizer))
        text, spans = writer.spans(messages[:stop], prompt=True)
        segments = _split(text, spans, None)
    (ids, _), *_ = tokenize([[s.text for s in segments]], tokenizer)
    if template.kind == "raw" and ids[:1] != (bos_id := _bos(tokenizer)):
        ids = bos_id + ids
    return np.array(ids, dtype=np.int32)


def ends_turns(example: Example, tokenizer: Tokenizer, template: Template) -> bool:
    """Whether the template ends this example's answer with a special token (else eos is added)."""
    return _segments(example, tokenizer, template, special_texts(tokenizer))[1]


def tokenize(
    rows: Sequence[Sequence[str]], tokenizer: Tokenizer
) -> list[tuple[list[int], list[int]]]:
    """Each row's segments -> (ids of all of them, how many ids each segment has).

    The ids of the first k segments never depend on the segments after them. So the segments are
    tokenized as one text, as a server would do, wherever the ids of that text begin with those of
    its first segments. Where a token would reach across the border (a prompt that ends in a
    newline, an answer that begins with one), the segments are tokenized separately, because the
    model reads the prompt without the answer at inference.
    """
    prefixes = [["".join(segments[: k + 1]) for k in range(len(segments))] for segments in rows]
    flat = [text for texts in prefixes for text in texts]
    prefix_ids = iter(tokenizer(flat, add_special_tokens=False)["input_ids"] if flat else [])
    result = []
    for segments in rows:
        ids: list[int] = []
        counts = []
        for segment in segments:
            joined, before = list(next(prefix_ids)), len(ids)
            if joined[:before] == ids:
                ids = joined
            else:
                ids = ids + list(tokenizer([segment], add_special_tokens=False)["input_ids"][0])
            counts.append(len(ids) - before)
        result.append((ids, counts))
    return result


def _bos(tokenizer: Tokenizer) -> list[int]:
    """The token that this tokenizer puts before a raw text, or nothing."""
    bos = [tokenizer.bos_token_id]
    return bos if list(tokenizer(["x"])["input_ids"][0])[:1] == bos else []


def _eos(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "the tokenizer has no end token (eos), so the model would never learn to stop: set one, "
            "or give template a chat template that ends each turn with a special token"
        )
    return int(tokenizer.eos_token_id)


def _only_prompts(example: Example) -> None:
    if example.messages is not None:
        raise DataError(
            f"{example.origin}: a conversation needs a chat template, and this one is 'raw'"
        )


def _messages(example: Example, template: Template) -> tuple[Message, ...]:
    if example.messages is not None:
        return template.with_system(example.messages)
    messages: list[Message] = [{"role": "user", "content": example.prompt or ""}]
    if example.completion is not None:
        messages.append({"role": "assistant", "content": example.completion})
    return template.with_system(tuple(messages))


def _segments(
    example: Example, tokenizer: Tokenizer, template: Template, specials: tuple[str, ...]
) -> tuple[list[TextSegment], bool]:
    """The example's text in segments, and whether the last of them holds the token that ends it."""
    if example.text is not None:
        return [TextSegment(example.text, True)], False
    if template.kind == "raw":
        _only_prompts(example)
        segments = [
            TextSegment(example.prompt or "", False),
            TextSegment(example.completion or "", True),
        ]
        return [s for s in segments if s.text], False
    messages = _messages(example, template)
    writer = ChatWriter(example, tokenizer, template, specials)
    text, spans = writer.spans(messages)
    prompt_end = None
    if messages[-1]["role"] == "assistant":
        prompt_end = writer.head(messages[:-1], text)
    segments = _split(text, spans, prompt_end)
    last = max((k for k, s in enumerate(segments) if s.supervised), default=-1)
    if last < 0:
        raise DataError(
            f"{example.origin}: every assistant message of the row has weight 0, so there is nothing "
            "to learn from it"
        )
    return segments[: last + 1], segments[last].text.endswith(specials)


def _split(text: str, spans: Sequence[Span], prompt_end: int | None) -> list[TextSegment]:
    """The text in segments, split at the ends of each span and at the end of the prompt."""
    edges = {0, len(text), *(s.start for s in spans), *(s.end for s in spans)}
    if prompt_end is not None:
        edges.add(prompt_end)
    return [
        TextSegment(text[a:b], any(s.supervised and s.start <= a and b <= s.end for s in spans))
        for a, b in pairwise(sorted(edges))
    ]
