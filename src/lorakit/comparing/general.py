"""The rows on which forgetting is measured: general prompts with the base's own answers, or the user's."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorakit.comparing.prompts import PROMPTS
from lorakit.data import DataSpec, Example, TokenTable, encode_all, encode_prompt, load_rows
from lorakit.execution.generate import generate
from lorakit.experiments.opening import TrialContext

MOST_ROWS = 256
OWN = "40 general prompts with the base's own answers"


@dataclass(frozen=True)
class GeneralRows:
    """Rows as tokens, where they came from in words, and the first of them to read."""

    table: TokenTable
    source: str
    texts: list[dict[str, Any]]


def rows(sources: Sequence[str], context: TrialContext, answer_tokens: int) -> GeneralRows:
    """The general rows of a base, through the template of the run.

    Args:
        sources: the user's; empty for the project's prompts, which the base then answers itself.
        context: the base.
        answer_tokens: longest of these answers.
    """
    session = context.session
    if sources:
        table, examples, _ = _users(sources, context)
        source = f"the first {len(table)} rows of {', '.join(sources)}"
    else:
        prompts = [Example(f"prompt {i}", prompt=text) for i, text in enumerate(PROMPTS, 1)]
        ids = [
            encode_prompt(each, session.tokenizer, session.template).tolist() for each in prompts
        ]
        generated = generate(
            session.model,
            session.tokenizer,
            ids,
            template=session.template,
            max_new_tokens=answer_tokens,
        )
        examples = tuple(
            Example(each.origin, prompt=each.prompt, completion=answer.text)
            for each, answer in zip(prompts, generated, strict=True)
            if answer.text.strip()
        )
        if not examples:  # a model that ends at once has only the prompts to be held to
            examples = tuple(Example(each.origin, text=each.prompt) for each in prompts)
        table = TokenTable.build(encode_all(examples, session.tokenizer, session.template))
        source = OWN
    texts = [
        {"prompt": each.question or (each.text or "")[:500], "answer": each.answer}
        for each in examples[: len(PROMPTS)]
    ]
    return GeneralRows(table, source, texts)


def content_hash(sources: Sequence[str], context: TrialContext) -> str:
    """A hash of what the general rows are made of."""
    if not sources:
        content = "\n".join(PROMPTS).encode()
    else:
        content = b"|".join(example.canonical() for example in _users(sources, context)[1])
    return hashlib.sha256(content).hexdigest()


def _users(
    sources: Sequence[str], context: TrialContext
) -> tuple[TokenTable, tuple[Example, ...], Any]:
    session = context.session
    return load_rows(
        sources,
        replace(
            DataSpec(too_long="cut"),
            template=context.config.data.template,
            template_options=context.config.data.template_options,
            drop=context.config.data.drop,
        ),
        session.tokenizer,
        session.template,
        limit=MOST_ROWS,
        context_length=session.context_length,
        embeddings=session.embeddings,
        texts_alone=True,
    )
