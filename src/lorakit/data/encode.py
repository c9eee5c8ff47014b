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
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lorakit.data.forms import thinking_of
from lorakit.data.omitted import OmissionCheck, omission_error
from lorakit.data.pieces import content_of
from lorakit.data.shapes import Example, Message
from lorakit.data.table import Encoded
from lorakit.data.template import Template, Tokenizer
from lorakit.data.turns import Conversation, TextSegment, WrittenSequence
from lorakit.errors import ConfigError, DataError


@dataclass(frozen=True)
class EncodedExample:
    """One example as sequences of tokens.

    sequences: one; several where no single text holds all answers as they will be asked for; none
    where its answers are empty and `drop` names that. answers: how many are supervised. context:
    answers that are read only, because nothing is asked before them. dropped: kinds of parts that
    the template left out.
    """

    sequences: tuple[Encoded, ...]
    answers: int = 1
    context: int = 0
    dropped: frozenset[str] = frozenset()


def encode(example: Example, tokenizer: Tokenizer, template: Template) -> Encoded:
    """One example as tokens, the first sequence of it; see `encode_examples`."""
    return next(encode_all([example], tokenizer, template))


def encode_all(
    examples: Iterable[Example], tokenizer: Tokenizer, template: Template, chunk: int = 256
) -> Iterator[Encoded]:
    """The sequences of all examples, one after the other; see `encode_examples`."""
    for example in encode_examples(examples, tokenizer, template, chunk=chunk):
        yield from example.sequences


def encode_examples(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    template: Template,
    *,
    drop: Sequence[str] = (),
    chunk: int = 256,
) -> Iterator[EncodedExample]:
    """Examples as tokens, in their order, `chunk` of them tokenized at once.

    Supervised are every token of a completion or an assistant message and the token that ends it
    (the chat template's end of turn, or the tokenizer's eos), but not the newline after that; and
    every token of a plain text and its eos. An assistant message with "weight": 0 is not
    supervised. A conversation becomes as few sequences as hold each answer once, after the prompt
    that is served for it (`lorakit.data.turns`).

    drop: names of `spec.DROPPABLE`, which are no errors.

    Raises:
        DataError: the template refuses the example or leaves a part of it out, an answer is empty,
            or no token is supervised.
    """
    rest, bos_id, check = iter(examples), _bos(tokenizer), OmissionCheck()
    while batch := list(islice(rest, chunk)):
        written = [_write(example, tokenizer, template, drop, check) for example in batch]
        rows = [[s.text for s in row.segments] for each in written for row in each.rows]
        tokens = iter(tokenize(rows, tokenizer))
        for example, each in zip(batch, written, strict=True):
            sequences = []
            for row in each.rows:
                ids, counts = next(tokens)
                mask = [s.supervised for s in row.segments]
                if template.kind == "raw" or example.text is not None:
                    bos = [] if ids[:1] == bos_id else bos_id
                    ids, counts, mask = bos + ids, [len(bos), *counts], [False, *mask]
                if not row.ended:
                    ids, counts, mask = [*ids, _eos(tokenizer)], [*counts, 1], [*mask, True]
                weight = np.repeat(np.array(mask, dtype=np.uint8), counts)
                weight[:1] = 0
                if not weight.any():
                    raise DataError(
                        f"{example.origin}: no token of the row is supervised, so there is nothing "
                        "to learn from it"
                    )
                sequences.append(
                    Encoded(np.array(ids, dtype=np.int32), weight, example.origin, example.weight)
                )
            yield EncodedExample(tuple(sequences), each.answers, each.context, each.dropped)


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
        messages = messages_of(example, template)
        stop = next(
            (i for i in reversed(range(len(messages))) if messages[i]["role"] == "assistant"),
            len(messages),
        )
        conversation = Conversation(example, messages, tokenizer, template)
        segments = conversation.prompt_segments(stop)
    (ids, _), *_ = tokenize([[s.text for s in segments]], tokenizer)
    if template.kind == "raw" and ids[:1] != (bos_id := _bos(tokenizer)):
        ids = bos_id + ids
    return np.array(ids, dtype=np.int32)


def ends_turns(
    example: Example, tokenizer: Tokenizer, template: Template, drop: Sequence[str] = ()
) -> bool:
    """Whether the template ends this example's answer with a special token (else eos is added)."""
    rows = _write(example, tokenizer, template, drop, OmissionCheck()).rows
    return all(row.ended for row in rows)


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


def messages_of(example: Example, template: Template) -> tuple[Message, ...]:
    """The example as a conversation, with the template's system text."""
    if example.messages is not None:
        return template.with_system(example.messages)
    messages: list[Message] = [{"role": "user", "content": example.prompt or ""}]
    if example.completion is not None:
        messages.append({"role": "assistant", "content": example.completion})
    return template.with_system(tuple(messages))


@dataclass(frozen=True)
class _WrittenExample:
    rows: tuple[WrittenSequence, ...]
    answers: int = 1
    context: int = 0
    dropped: frozenset[str] = frozenset()


def _write(
    example: Example,
    tokenizer: Tokenizer,
    template: Template,
    drop: Sequence[str],
    check: OmissionCheck,
) -> _WrittenExample:
    """The example's sequences in segments, and whether each holds the token that ends it."""
    if example.text is not None:
        return _WrittenExample((WrittenSequence((TextSegment(example.text, True),), False),))
    if template.kind == "raw":
        _only_prompts(example)
        completion = example.completion or ""
        if not completion.strip():
            _refuse_empty(example, "the completion", drop)
            return _WrittenExample(())
        both = (TextSegment(example.prompt or "", False), TextSegment(completion, True))
        return _WrittenExample((WrittenSequence(tuple(s for s in both if s.text), False),))
    return _write_conversation(example, tokenizer, template, drop, check)


def _write_conversation(
    example: Example,
    tokenizer: Tokenizer,
    template: Template,
    drop: Sequence[str],
    check: OmissionCheck,
) -> _WrittenExample:
    messages = messages_of(example, template)
    conversation = Conversation(example, messages, tokenizer, template)
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    context = [i for i in answers if i == 0]
    if context == answers and answers:
        raise DataError(
            f"{example.origin}: the conversation begins with an assistant message, which answers "
            "nothing: put a system or user message before it, or set system"
        )
    taught = [i for i in answers if i not in context and messages[i].get("weight") != 0]
    if not taught:
        raise DataError(
            f"{example.origin}: every assistant message of the row has weight 0, so there is nothing "
            "to learn from it"
        )
    for i in taught:
        if not _said(messages[i]):
            what = f"message {i + 1} (assistant)" if example.messages else "the completion"
            _refuse_empty(example, what, drop)
            return _WrittenExample((), 0)
    dropped: set[str] = set()
    since = 0
    for i in list(taught):
        omissions = check.omissions(conversation, conversation.turn(i), since)
        since = i + 1
        for omission in omissions:
            if omission.kind not in drop:
                raise omission_error(example.origin, omission, conversation.format)
        dropped |= {omission.kind for omission in omissions}
        gone = {omission.kind for omission in omissions if omission.message == i + 1}
        if _said(messages[i]) <= gone:
            taught.remove(i)  # what the template writes of it is no answer
    rows = conversation.sequences(taught) if taught else []
    return _WrittenExample(tuple(rows), len(taught), len(context), frozenset(dropped))


def _said(message: Message) -> set[str]:
    """Of which kinds an answer is; its thinking counts where there is nothing else."""
    content = content_of(message)
    parts = {"content": content.said.strip(), "tool_calls": message.get("tool_calls")}
    kinds = {kind for kind, part in parts.items() if part}
    thought = thinking_of(message).strip() or content.thoughts
    return kinds or ({"thinking"} if thought else set())


def _refuse_empty(example: Example, what: str, drop: Sequence[str]) -> None:
    if "empty" not in drop:
        raise DataError(
            f"{example.origin}: {what} is empty, so there is nothing to learn from the row: fill it, "
            "or --drop empty to leave such rows out"
        )
