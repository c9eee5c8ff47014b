"""What `lorakit check` says of each answer: whether serving sends the prompt that is trained.

Serving sends token ids that are made from the messages alone. They are made here as the server makes
them, and held against the beginning of the training row.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lorakit.data.encode import encode_prompt
from lorakit.data.shapes import Example, Message
from lorakit.data.table import Encoded
from lorakit.data.template import Template, Tokenizer
from lorakit.data.turns import Conversation, Turn


@dataclass(frozen=True)
class ServedTurn:
    """One answer of a row, and the prompt that serving sends for it.

    number: of the answer's message, from 1; 0 where the row is a prompt and its answer. sequence:
    index of the sequence that teaches it. prompt_tokens: how many tokens serving sends. parts_at:
    None where training reads the same tokens, else how many are the same. later: pieces of the
    answer that a later prompt of this conversation leaves out.
    """

    number: int
    sequence: int
    prompt_tokens: int
    parts_at: int | None
    later: tuple[str, ...] = ()


def served_turns(
    example: Example, sequences: Sequence[Encoded], tokenizer: Tokenizer, template: Template
) -> list[ServedTurn]:
    """Each supervised answer of one row, in the order of its sequences; none for plain text.

    Raises:
        DataError: the template refuses the messages that a client would send.
    """
    if example.text is not None:
        return []
    starts = [
        (k, int(at) + 1)
        for k, row in enumerate(sequences)
        for at in np.flatnonzero(np.diff(row.weight.astype(np.int8)) == 1)
    ]
    if example.messages is None:
        ids = encode_prompt(example, tokenizer, template)
        return [ServedTurn(0, k, len(ids), _parting(ids, sequences[k])) for k, _ in starts[:1]]
    messages = template.with_system(example.messages)
    conversation = Conversation(example, messages, tokenizer, template)
    found = []
    for at, message in enumerate(messages):
        if message["role"] != "assistant" or not at or message.get("weight") == 0:
            continue
        # As a server reads a request: the messages before, and no answer yet.
        asked = Example(example.origin, messages=(*messages[:at], _EMPTY), tools=example.tools)
        ids = encode_prompt(asked, tokenizer, template)
        here = [k for k, start in starts if start == len(ids)]
        same = [k for k in here if _parting(ids, sequences[k]) is None]
        if not here:
            continue  # left out by `drop`
        k = (same or here)[0]
        later = tuple(_left_out_later(conversation, conversation.turn(at)))
        shown = at + 1 - (len(messages) - len(example.messages))
        found.append(ServedTurn(shown, k, len(ids), _parting(ids, sequences[k]), later))
    return found


_EMPTY: Message = {"role": "assistant", "content": ""}


def _parting(ids: np.ndarray, row: Encoded) -> int | None:
    """How many tokens are the same, None where all of the prompt's are."""
    upto = row.ids[: len(ids)]
    differ = np.flatnonzero(upto != ids[: len(upto)])
    return int(differ[0]) if len(differ) else None


def _left_out_later(conversation: Conversation, turn: Turn) -> Iterator[str]:
    """Pieces of an answer that the prompt of the next one does not hold."""
    following = [
        i
        for i, m in enumerate(conversation.messages)
        if i > turn.at and m["role"] == "assistant" and i > turn.at + 1
    ]
    if not following:
        return
    # The end token of a last answer may differ as well; only what the model said is shown.
    ours = conversation.format.atoms(turn.text)
    theirs = conversation.format.atoms(conversation.prompt(following[0]))
    start = len(conversation.format.atoms(turn.prompt))
    # Matching takes the square of the length, and what comes before the answer is mostly the same.
    pairs = enumerate(zip(ours, theirs, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    ours, theirs = ours[max(same, start) :], theirs[same:]
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    for kind, low, high, _, _ in matcher.get_opcodes():
        piece = "".join(ours[low:high])
        if kind in ("delete", "replace") and piece.strip():
            yield piece
