"""Answers in batches: by transformers' own generation, or one of a few labels for each row.

They are for what the engine cannot serve and for models that the caller holds. A batch is made of
rows of one window, so that it depends on the window alone.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

from lorakit.execution.choices import score_choices
from lorakit.execution.generate import generate
from lorakit.run.session import Session
from lorakit.serving.answering.asked import AskedRow
from lorakit.serving.answering.row_answer import (
    NOT_FINITE,
    RowAnswer,
    RowDecoding,
    answer_of,
    rounded,
)

_BATCH = 16


class BatchAnswerer:
    """Answers by transformers' own generation, prompts of like length in a batch.

    Args:
        session: the model, its adapter attached.
        decoding: how answers are generated.
    """

    way = f"transformers, batches of {_BATCH}"

    def __init__(self, session: Session, decoding: RowDecoding) -> None:
        self._session, self._decoding = session, decoding

    def answers(
        self, rows: Sequence[AskedRow], first: int, done: Callable[[int], None]
    ) -> list[RowAnswer]:
        """See `Answerer`."""
        session, wish = self._session, self._decoding
        prompts = [row.ids for row in rows]
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        made: dict[int, RowAnswer] = {}
        for begin in range(0, len(order), _BATCH):
            members = order[begin : begin + _BATCH]
            answers = generate(
                *(session.model, session.tokenizer, [prompts[i] for i in members]),
                template=session.template,
                max_new_tokens=wish.most,
                temperature=wish.temperature,
                top_p=wish.top_p,
                top_k=wish.top_k,
                seed=_seed(wish.seed, first + begin),
                batch_size=_BATCH,
                logprobs=True,
            )
            for i, answer in zip(members, answers, strict=True):
                assert answer.logprob is not None
                made[i] = answer_of(answer.text, answer.logprob, finished=answer.finished)
            done(len(made))
        return [made[i] for i in range(len(prompts))]

    def close(self) -> None:
        """See `Answerer`."""


class ChoiceAnswerer:
    """Answers with one of a few labels: the likeliest, see `lorakit.execution.choices`.

    Args:
        session: the model, its adapter attached.
        choices: the labels.
        lead: white space before a label, as it was trained.
    """

    way = f"choices, batches of {_BATCH}"

    def __init__(self, session: Session, choices: Sequence[str], lead: str) -> None:
        self._session, self._choices, self._lead = session, tuple(choices), lead

    def answers(
        self, rows: Sequence[AskedRow], first: int, done: Callable[[int], None]
    ) -> list[RowAnswer]:
        """See `Answerer`."""
        session, made = self._session, list[RowAnswer]()
        for begin in range(0, len(rows), _BATCH):
            examples = [r.example for r in rows[begin : begin + _BATCH] if r.example is not None]
            scores = score_choices(
                *(session.model, session.tokenizer, session.template, examples, self._choices),
                lead=self._lead,
            )
            for label, p_C in zip(scores.picked, scores.probabilities.tolist(), strict=True):
                if not all(map(math.isfinite, p_C)):
                    made.append(RowAnswer(None, None, error=NOT_FINITE))
                    continue
                shares = tuple(map(rounded, p_C))
                made.append(RowAnswer(label, max(shares), shares=shares))
            done(len(made))
        return made

    def close(self) -> None:
        """See `Answerer`."""


def _seed(seed: int, place: int) -> int:
    digest = hashlib.sha256(f"{seed}/{place}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
