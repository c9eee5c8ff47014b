"""Which of a few answers a model finds likeliest, and how likely each is; see `answer_log_probs`.

Legend: R prompts, C answers to each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lorakit.data import Encoded, Example, Template, encode_prompt
from lorakit.data.encode import encode_examples
from lorakit.errors import ConfigError
from lorakit.execution.answer_probs import Floats, answer_log_probs

# Prompts whose rows are held as tokens at once.
_ROWS = 256


@dataclass(frozen=True)
class ChoiceScores:
    """How likely each of C answers is to each of R prompts.

    Attributes:
        choices: the answers.
        log_p_RC: log p of each as the whole answer, in nats, (R, C).
    """

    choices: tuple[str, ...]
    log_p_RC: Floats  # noqa: N815

    @property
    def probabilities(self) -> Floats:
        """(R, C): the probability of each answer, given that it is one of these; rows sum to 1."""
        shifted = self.log_p_RC - self.log_p_RC.max(axis=1, keepdims=True)
        p_RC = np.exp(shifted)
        return np.asarray(p_RC / p_RC.sum(axis=1, keepdims=True))

    @property
    def picked(self) -> tuple[str, ...]:
        """The likeliest answer to each prompt; of equal ones the first."""
        return tuple(self.choices[int(i)] for i in self.log_p_RC.argmax(axis=1))


def read_choices(given: Sequence[str]) -> tuple[str, ...]:
    """The answers that a caller names, white space at both ends aside.

    Raises:
        ConfigError: fewer than two, an empty one, or one twice.
    """
    choices = tuple(choice.strip() for choice in given)
    if len(choices) < 2 or "" in choices:
        raise ConfigError("choices: name at least two answers, none of them empty, such as yes,no")
    if len(set(choices)) < len(choices):
        twice = next(choice for choice in choices if choices.count(choice) > 1)
        raise ConfigError(f"choices names {twice!r} twice")
    return choices


def score_choices(
    model: Any,
    tokenizer: Any,
    template: Template,
    examples: Sequence[Example],
    choices: Sequence[str],
    *,
    lead: str = "",
    drop: Sequence[str] = (),
    batch_tokens: int = 4096,
) -> ChoiceScores:
    """How likely each of the same answers is to each prompt.

    Args:
        model: a causal LM, with or without pairs attached; it is left as it was.
        tokenizer: its tokenizer.
        template: how prompts are written.
        examples: rows with a prompt. Of an answer that one has, only the white space before it
            counts: the choices are written after the same.
        choices: the answers, at least one, none of them empty.
        lead: white space before the answer to a row that has none of its own.
        drop: as of `lorakit.data.DataSpec`.
        batch_tokens: most cells of the KV cache, or tokens of a pass, at a time; a longer row has
            its own.

    Raises:
        DataError: the template refuses a prompt.
        ModelError: a prompt with its answer is longer than the model reads.
    """
    log_p_RC = np.zeros((len(examples), len(choices)))
    # In parts, so that a file of any length takes no more memory than a few hundred rows.
    for first in range(0, len(examples), _ROWS):
        some = examples[first : first + _ROWS]
        groups = choice_rows(some, choices, tokenizer, template, lead=lead, drop=drop)
        log_p_RC[first : first + _ROWS] = answer_log_probs(model, groups, batch_tokens=batch_tokens)
    return ChoiceScores(tuple(choices), log_p_RC)


def choice_rows(
    examples: Sequence[Example],
    choices: Sequence[str],
    tokenizer: Any,
    template: Template,
    *,
    lead: str = "",
    drop: Sequence[str] = (),
) -> list[list[Encoded]]:
    """Prompt and answer as tokens, for each example once for each choice, as training would write it.

    Raises:
        DataError: as `lorakit.data.encode`.
    """
    prompts = [len(encode_prompt(example, tokenizer, template)) for example in examples]

    def written(which: Sequence[int], labels: Sequence[str]) -> list[Encoded]:
        """Of each of these examples one row for each label."""
        asked = [
            _answering(examples[i], _space(examples[i], lead) + c) for i in which for c in labels
        ]
        made = encode_examples(asked, tokenizer, template, drop=drop)
        lengths = [prompts[i] for i in which for _ in labels]
        return [
            _last_answer(one.sequences[-1], length)
            for one, length in zip(made, lengths, strict=True)
        ]

    every = range(len(examples))
    if template.kind == "raw" or len(choices) < 2 or len(examples) < 2:
        rows = written(every, choices)
        return [rows[i : i + len(choices)] for i in range(0, len(rows), len(choices))]
    # After a chat template's header an answer is written the same whatever was asked. One label of
    # each row shows whether that holds; if so, the others are those of the first row.
    known = [_tail(row, prompts[0]) for row in written([0], choices)]
    firsts = written(every, choices[:1])
    groups = []
    for i, first in enumerate(firsts):
        if not _equal(_tail(first, prompts[i]), known[0]):
            groups.append(written([i], choices))
            continue
        head = Encoded(first.ids[: prompts[i]], first.weight[: prompts[i]], first.origin)
        groups.append([first, *(_joined(head, tail) for tail in known[1:])])
    return groups


def _tail(row: Encoded, prompt: int) -> Encoded:
    return Encoded(row.ids[prompt:], row.weight[prompt:], row.origin)


def _equal(one: Encoded, other: Encoded) -> bool:
    return np.array_equal(one.ids, other.ids) and np.array_equal(one.weight, other.weight)


def _joined(head: Encoded, tail: Encoded) -> Encoded:
    ids, weight = np.concatenate([head.ids, tail.ids]), np.concatenate([head.weight, tail.weight])
    return Encoded(ids, weight, head.origin)


def _space(example: Example, lead: str) -> str:
    """The white space before the example's own answer."""
    answer = example.completion
    return lead if answer is None else answer[: len(answer) - len(answer.lstrip())]


def _answering(example: Example, answer: str) -> Example:
    """The example with another answer: alone supervised, without calls and thoughts of the row's own."""
    if example.messages is None:
        return replace(example, completion=answer)
    earlier = [
        {**m, "weight": 0} if m["role"] == "assistant" else m
        for m in example.messages[: example.answer_at]
    ]
    return replace(example, messages=(*earlier, {"role": "assistant", "content": answer}))


def _last_answer(row: Encoded, prompt: int) -> Encoded:
    """The row, supervised after its prompt alone."""
    weight = row.weight.copy()
    weight[:prompt] = 0
    return Encoded(row.ids, weight, row.origin)
