"""The rows on which forgetting is measured: general prompts with the base's own answers, or the user's."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.comparing.prompts import PROMPTS
from lorakit.data import DataSpec, Example, TokenTable, encode_all, encode_prompt, load_rows
from lorakit.execution.generate import generate
from lorakit.experiments.opening import Opened

MOST_ROWS = 256
OWN = "40 general prompts with the base's own answers"


@dataclass(frozen=True)
class GeneralRows:
    """Rows as tokens, where they came from in words, and the first of them to read."""

    table: TokenTable
    source: str
    texts: list[dict[str, Any]]


def rows(sources: Sequence[str], opened: Opened, answer_tokens: int) -> GeneralRows:
    """The general rows of a base, through the template of the run.

    Args:
        sources: the user's; empty for the project's prompts, which the base then answers itself.
        opened: the base.
        answer_tokens: longest of these answers.
    """
    session = opened.session
    if sources:
        table, examples, _ = _users(sources, opened)
        said = f"the first {len(table)} rows of {', '.join(sources)}"
    else:
        asked = [Example(f"prompt {i}", prompt=text) for i, text in enumerate(PROMPTS, 1)]
        ids = [encode_prompt(each, session.tokenizer, session.template).tolist() for each in asked]
        made = generate(session.model, session.tokenizer, ids, max_new_tokens=answer_tokens)
        examples = tuple(
            Example(each.origin, prompt=each.prompt, completion=answer.text)
            for each, answer in zip(asked, made, strict=True)
            if answer.text.strip()
        )
        if not examples:  # a model that ends at once has only the prompts to be held to
            examples = tuple(Example(each.origin, text=each.prompt) for each in asked)
        table = TokenTable.build(encode_all(examples, session.tokenizer, session.template))
        said = OWN
    texts = [
        {"prompt": each.question or (each.text or "")[:500], "answer": each.answer}
        for each in examples[: len(PROMPTS)]
    ]
    return GeneralRows(table, said, texts)


def content_hash(sources: Sequence[str], opened: Opened) -> str:
    """A hash of what the general rows are made of."""
    if not sources:
        content = "\n".join(PROMPTS).encode()
    else:
        content = b"|".join(example.canonical() for example in _users(sources, opened)[1])
    return hashlib.sha256(content).hexdigest()


def _users(sources: Sequence[str], opened: Opened) -> tuple[TokenTable, tuple[Example, ...], Any]:
    session = opened.session
    return load_rows(
        sources,
        DataSpec(template=opened.config.data.template, too_long="cut"),
        session.tokenizer,
        session.template,
        limit=MOST_ROWS,
        context_length=session.context_length,
    )
