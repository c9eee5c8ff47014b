"""Example -> token ids and the weight of each, by a template.

An example is first written as pieces of text, each of which bears loss or does not:

    chat   "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n"   "Hello!<|im_end|>"
    raw    "Q: Hi A:"                                                 " Hello!"  + the end token
                                                       no loss         loss

and then tokenized so that what the model is asked at inference is, token for token, how the
training row begins (`tokenize`). What follows the last loss-bearing token is left out: in a causal
model it can change no loss.
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
class Piece:
    """A piece of a row's text, and whether its tokens bear loss."""

    text: str
    learnt: bool


def encode(example: Example, tokenizer: Tokenizer, template: Template) -> Encoded:
    """One example as tokens; see `encode_all`."""
    return next(encode_all([example], tokenizer, template))


def encode_all(
    examples: Iterable[Example], tokenizer: Tokenizer, template: Template, chunk: int = 256
) -> Iterator[Encoded]:
    """Examples as tokens, in their order, `chunk` of them tokenized at once.

    Loss falls on every token of a completion or an assistant message and on the token that ends it
    (the chat template's end of turn, or the tokenizer's eos), not on the newline after that; on
    every token of a plain text and its eos. An assistant message with "weight": 0 bears none.

    Raises:
        DataError: the template refuses the example, or no token of it bears loss.
    """
    rest, bos_id, specials = iter(examples), _bos(tokenizer), special_texts(tokenizer)
    while batch := list(islice(rest, chunk)):
        written = [_pieces(example, tokenizer, template, specials) for example in batch]
        tokens = tokenize([[p.text for p in pieces] for pieces, _ in written], tokenizer)
        for example, (pieces, ended), (ids, counts) in zip(batch, written, tokens, strict=True):
            learnt = [p.learnt for p in pieces]
            if template.kind == "raw" or example.text is not None:
                bos = [] if ids[:1] == bos_id else bos_id
                ids, counts, learnt = bos + ids, [len(bos), *counts], [False, *learnt]
            if not ended:
                ids, counts, learnt = [*ids, _eos(tokenizer)], [*counts, 1], [*learnt, True]
            weight = np.repeat(np.array(learnt, dtype=np.uint8), counts)
            weight[:1] = 0
            if not weight.any():
                raise DataError(f"{example.origin}: no token of the row bears loss")
            yield Encoded(np.array(ids, dtype=np.int32), weight, example.origin)


def encode_prompt(example: Example, tokenizer: Tokenizer, template: Template) -> NDArray[np.int32]:
    """The tokens to ask the model with: how `encode` of the same example begins, up to the answer.

    For a conversation, everything before its last assistant message (all of it where there is
    none). Returns int32 (T,).

    Raises:
        DataError: the example is plain text, or the template refuses it.
    """
    if example.text is not None:
        raise DataError(f"{example.origin}: a row of plain text has no prompt to ask")
    if template.kind == "raw":
        _only_prompts(example)
        pieces = [Piece(example.prompt or "", False)]
    else:
        messages = _messages(example, template)
        ask = next(
            (i for i in reversed(range(len(messages))) if messages[i]["role"] == "assistant"),
            len(messages),
        )
        writer = ChatWriter(example, tokenizer, template, special_texts(tokenizer))
        text, spans = writer.spans(messages[:ask], ask=True)
        pieces = _cut(text, spans, None)
    (ids, _), *_ = tokenize([[p.text for p in pieces]], tokenizer)
    if template.kind == "raw" and ids[:1] != (bos_id := _bos(tokenizer)):
        ids = bos_id + ids
    return np.array(ids, dtype=np.int32)


def ends_turns(example: Example, tokenizer: Tokenizer, template: Template) -> bool:
    """Whether the template ends this example's answer with a special token (else eos is added)."""
    return _pieces(example, tokenizer, template, special_texts(tokenizer))[1]


def tokenize(
    rows: Sequence[Sequence[str]], tokenizer: Tokenizer
) -> list[tuple[list[int], list[int]]]:
    """Each row's pieces -> (ids of all of them, how many ids each piece has).

    The ids of the first k pieces never depend on the pieces after them. So they are tokenized as
    one text, as a server would do, wherever that text's ids begin with those of its first pieces;
    where a token would reach across the border (a prompt that ends in a newline, an answer that
    begins with one), the pieces are tokenized apart, because the model is asked without the answer.
    """
    starts = [["".join(pieces[: k + 1]) for k in range(len(pieces))] for pieces in rows]
    flat = [text for texts in starts for text in texts]
    found = iter(tokenizer(flat, add_special_tokens=False)["input_ids"] if flat else [])
    result = []
    for pieces in rows:
        ids: list[int] = []
        counts = []
        for piece in pieces:
            together, before = list(next(found)), len(ids)
            if together[:before] == ids:
                ids = together
            else:
                ids = ids + list(tokenizer([piece], add_special_tokens=False)["input_ids"][0])
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


def _pieces(
    example: Example, tokenizer: Tokenizer, template: Template, specials: tuple[str, ...]
) -> tuple[list[Piece], bool]:
    """The example's text in pieces, and whether the last of them holds the token that ends it."""
    if example.text is not None:
        return [Piece(example.text, True)], False
    if template.kind == "raw":
        _only_prompts(example)
        pieces = [Piece(example.prompt or "", False), Piece(example.completion or "", True)]
        return [p for p in pieces if p.text], False
    messages = _messages(example, template)
    writer = ChatWriter(example, tokenizer, template, specials)
    text, spans = writer.spans(messages)
    asked = None
    if messages[-1]["role"] == "assistant":
        asked = writer.head(messages[:-1], text)
    pieces = _cut(text, spans, asked)
    last = max((k for k, p in enumerate(pieces) if p.learnt), default=-1)
    if last < 0:
        raise DataError(f"{example.origin}: no assistant message of the row bears loss")
    return pieces[: last + 1], pieces[last].text.endswith(specials)


def _cut(text: str, spans: Sequence[Span], asked: int | None) -> list[Piece]:
    """The text in pieces, cut at each span's ends and where the model is asked."""
    cuts = {0, len(text), *(s.start for s in spans), *(s.end for s in spans)}
    if asked is not None:
        cuts.add(asked)
    edges = sorted(cuts)
    return [
        Piece(text[a:b], any(s.learnt and s.start <= a and b <= s.end for s in spans))
        for a, b in pairwise(edges)
    ]
