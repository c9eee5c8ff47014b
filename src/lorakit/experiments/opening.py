"""Base and rows of a trial, opened in its own process, and which rows are for what.

training rows ──┬── trained on, by every arm of a comparison in the same order
                └── validation rows: its probe chooses learning rates by them, and nothing else
test rows ───────── reported; a comparison chooses nothing by them

`lorakit rank` trains on all training rows, and chooses rate and rank by the held-out ones.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lorakit.config import RunConfig, load_config
from lorakit.data import Dataset, TokenTable, load_data
from lorakit.data.split import held_out
from lorakit.errors import DataError
from lorakit.evaluation.scores import Scores
from lorakit.experiments.stamps import Sources, Stamp
from lorakit.run.session import Session, open_base

VALIDATION_SHARE, MOST_VALIDATION_ROWS = 0.1, 128


@dataclass(frozen=True)
class TrialContext:
    """A base and its rows, ready.

    Attributes:
        config: the run's options.
        session: base, tokenizer, identity, template.
        data: all rows; `data.train` are the training rows, `data.eval` the held-out ones.
    """

    config: RunConfig
    session: Session
    data: Dataset

    @property
    def model(self) -> Any:
        """The base."""
        return self.session.model


def open_trial(stamp: Stamp, sources: Sources, base_dtype: str | None = None) -> TrialContext:
    """The base and the rows of a trial.

    Args:
        stamp: options, and hashes of rows and base.
        sources: where they lie.
        base_dtype: how the base is held, where that is not as the options say.

    Raises:
        DataError: the rows or the base are not those that the command began with.
    """
    held = {} if base_dtype is None else {"base_dtype": base_dtype}
    config = load_config(None, {**stamp.config, **sources.options, **held})
    session = open_base(config.model, config.data)
    data = load_data(
        config.data,
        session.tokenizer,
        seed=config.train.seed,
        context_length=session.context_length,
        embeddings=session.embeddings,
    )
    if not len(data.eval):
        raise DataError("nothing is held out: give --eval-data, or an --eval-share above 0")
    for what, before, now in (
        ("rows", stamp.data_sha256, data.data_sha256),
        ("base model", stamp.base_sha256, base_hash(session)),
    ):
        if before not in ("", now):
            raise DataError(f"the {what} changed while the trials were running: start them anew")
    return TrialContext(config, replace(session, template=data.template), data)


@dataclass(frozen=True)
class HeldOutAnswers:
    """Answers of a model to held-out prompts.

    Attributes:
        prompts: as a person reads them.
        references, answers: as they are scored, one a prompt.
        tokens: of all answers.
        scores: of the answers; None where nothing can be asked.
    """

    prompts: tuple[str, ...]
    references: tuple[str, ...]
    answers: tuple[str, ...]
    tokens: int
    scores: Scores | None


def ask_held_out(
    context: TrialContext, samples: int, limit: int | None, metrics: str | Sequence[str] = "auto"
) -> HeldOutAnswers:
    """Ask held-out prompts; how they are judged follows from all held-out answers, in every trial.

    Args:
        context: of the trial; its model answers as it is now.
        samples: how many prompts.
        limit: most new tokens of an answer; None by the longest one of the rows.
        metrics: as of `lorakit.evaluation.score`.
    """
    data, session, task = context.data, context.session, context.session.task
    plan = task.plan_answers(
        data.eval_examples,
        session,
        (data.train, data.eval),
        limit="auto" if limit is None else limit,
        metrics=metrics,
    )
    examples = task.examples(data.eval_examples, samples)
    references = task.references(session, examples)
    answers = task.predict(session, examples, plan.limit)
    return HeldOutAnswers(
        tuple(example.question for example in examples),
        tuple(reference.scored for reference in references),
        tuple(answer.scored for answer in answers),
        sum(answer.tokens for answer in answers),
        task.measure(references, answers, plan) if answers else None,
    )


def base_hash(session: Session) -> str:
    """One hash of the base's weights, tokenizer, template and number format."""
    identity = session.identity
    parts = (identity.weights_sha256, identity.tokenizer_sha256, identity.template_sha256)
    return hashlib.sha256("|".join((*parts, str(session.model.dtype))).encode()).hexdigest()


def split_validation(table: TokenTable, seed: int) -> tuple[TokenTable, TokenTable]:
    """Training rows that are trained on, and validation rows: a tenth of them, at most 128.

    Rows that begin alike up to their first supervised token stay together, so that no prompt of
    the validation rows is trained on.
    """
    keys = []
    for row in table:
        first = int(np.argmax(row.weight))
        prompt = row.ids[:first] if first > 1 else row.ids
        digest = hashlib.blake2b(prompt.tobytes(), digest_size=8, key=str(seed).encode())
        keys.append(int.from_bytes(digest.digest(), "little"))
    aside = held_out(np.array(keys, dtype=np.uint64), VALIDATION_SHARE, MOST_VALIDATION_ROWS)
    return table.take(np.flatnonzero(~aside)), table.take(np.flatnonzero(aside))
