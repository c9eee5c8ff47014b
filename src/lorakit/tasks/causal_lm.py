"""Causal language models: prompts and completions, judged by greedy answers."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from lorakit.data import (
    Batch,
    Dataset,
    DataSpec,
    Example,
    RowCounts,
    Template,
    TokenTable,
    encode_prompt,
    load_data,
    load_rows,
    micro_batches,
    resolve_template,
)
from lorakit.data.pieces import content_of
from lorakit.data.table import longest_answer
from lorakit.evaluation.intervals import changes
from lorakit.evaluation.kinds import ChosenMetrics, choose
from lorakit.evaluation.metrics import check_names, score, score_by
from lorakit.evaluation.scores import Scores
from lorakit.execution.choices import ChoiceScores, score_choices
from lorakit.execution.generate import generate
from lorakit.files.cache import Progress, no_progress
from lorakit.kernels.token_loss import PLAIN
from lorakit.models import ModelSpec, identify, load_model
from lorakit.tasks.answers import AnswerReader, TaskAnswer, calls_tools
from lorakit.tasks.task import AnswerPlan, Comparison, Session
from lorakit.training import CausalLoss, TrainSpec
from lorakit.training.loss import token_loss

# Prompts too long for the limit that share what room the longest of them leaves.
_TOGETHER = 16


class CausalLM:
    """The next token, given those before it; see `lorakit.tasks.task.Task`."""

    name = "causal_lm"

    def load(
        self, spec: ModelSpec, data: DataSpec | None = None, *, progress: Progress = no_progress
    ) -> Session:
        """A causal language model and its tokenizer."""
        model, tokenizer = load_model(spec, progress=progress)
        template = resolve_template(data or DataSpec(), tokenizer)
        return Session(model, tokenizer, identify(spec), template, self)

    def rows(
        self, spec: DataSpec, session: Session, *, seed: int, template: Template | None = None
    ) -> Dataset:
        """Rows through the chat template or another, their loss masks beside them."""
        return load_data(
            spec,
            session.tokenizer,
            seed=seed,
            context_length=session.context_length,
            embeddings=session.embeddings,
            template=template,
        )

    def rows_to_measure(
        self, spec: DataSpec, session: Session
    ) -> tuple[TokenTable, Sequence[Example], RowCounts]:
        """Every row of `spec.data`."""
        return load_rows(
            spec.data,
            spec,
            session.tokenizer,
            session.template,
            limit=spec.max_rows,
            context_length=session.context_length,
            embeddings=session.embeddings,
        )

    def batches(
        self, table: TokenTable, rows: Iterable[int], batch_tokens: int, device: Any
    ) -> list[Batch]:
        """Packed sequences, rows of like length together."""
        return [batch.to(device) for batch in micro_batches(table, list(rows), batch_tokens)]

    def loss(
        self, model: Any, spec: TrainSpec | None = None, *, recompute: bool = False
    ) -> CausalLoss:
        """Negative log-likelihood in nats, summed over supervised tokens; in training as the spec says."""
        kind = PLAIN if spec is None else token_loss(spec)
        return CausalLoss(model, recompute=recompute, kind=kind)

    def examples(self, rows: Sequence[Example], most: int | None = None) -> list[Example]:
        """Those with a prompt and an answer: plain text has neither.

        With `most` no prompt comes twice: files often hold several answers to one prompt in a row,
        and the first few rows would show one prompt several times.
        """
        answered = [example for example in rows if example.answer is not None]
        if most is None:
            return answered
        distinct: dict[tuple[str, ...], Example] = {}
        for example in answered:
            turns = tuple(str(m) for m in (example.messages or ())[: example.answer_at])
            distinct.setdefault((example.question, *turns), example)
        chosen = list(distinct.values())
        if most >= len(chosen):
            return chosen
        return [chosen[i * len(chosen) // most] for i in range(most)]

    def plan_answers(
        self,
        examples: Sequence[Example],
        session: Session,
        tables: Sequence[TokenTable],
        *,
        limit: int | Literal["auto"] = "auto",
        metrics: str | Sequence[str] = "auto",
    ) -> AnswerPlan:
        """The measures by all references; as limit the longest answer and a quarter more.

        Only rows with calls go through the template for this: of others the template writes the
        text that is in the row.
        """
        answered = self.examples(examples)
        longest = max((longest_answer(table) for table in tables), default=0) or None
        if limit == "auto":
            limit = default_limit(longest)
        if metrics != "auto":
            named = check_names(metrics)
            labels = choose(_texts(answered)).labels if answered else ()
            return AnswerPlan(
                ChosenMetrics(named, "named by the caller", labels), True, limit, longest
            )
        if not answered:
            return AnswerPlan(None, False, limit, longest)
        calling = [example for example in answered if calls_tools(example)]
        others = [example for example in answered if not calls_tools(example)]
        read = [answer.scored for answer in self.references(session, calling)]
        chosen = choose([*_texts(others), *((text,) for text in read)])
        return AnswerPlan(chosen, False, limit, longest)

    def predict(
        self, session: Session, examples: Sequence[Example], limit: int
    ) -> list[TaskAnswer]:
        """Greedy answers to the prompts of examples that have an answer.

        A prompt that leaves the model fewer positions than `limit` may use those.
        """
        asked = self.examples(examples)
        if not asked:
            return []
        prompts = [
            encode_prompt(example, session.tokenizer, session.template).tolist()
            for example in asked
        ]
        reader = AnswerReader(session.model, session.tokenizer, session.template)
        answers: dict[int, TaskAnswer] = {}
        for members, most in _rooms([len(prompt) for prompt in prompts], limit, session):
            completions = generate(
                session.model,
                session.tokenizer,
                [prompts[i] for i in members],
                template=session.template,
                max_new_tokens=most,
            )
            for i, completion in zip(members, completions, strict=True):
                answers[i] = reader.generated(asked[i], completion)
        return [answers[i] for i in range(len(asked))]

    def references(self, session: Session, examples: Sequence[Example]) -> list[TaskAnswer]:
        """What the template makes of the answers of examples that have one."""
        reader = AnswerReader(session.model, session.tokenizer, session.template)
        return [reader.reference(example) for example in self.examples(examples)]

    def measure(
        self, references: Sequence[TaskAnswer], predictions: Sequence[TaskAnswer], plan: AnswerPlan
    ) -> Scores:
        """Scores of answers against the references."""
        given, wanted = ([each.scored for each in some] for some in (predictions, references))
        if plan.named and plan.chosen is not None:
            scores = score(given, wanted, plan.chosen.names)
        else:
            chosen = plan.chosen or choose([(text,) for text in wanted])
            scores = score_by(given, wanted, chosen)
        reached = sum(not answer.finished for answer in predictions)
        return replace(scores, limit=plan.limit, reached=reached)

    def likelihoods(
        self,
        session: Session,
        examples: Sequence[Example],
        labels: Sequence[str],
        *,
        drop: Sequence[str] = (),
        batch_tokens: int = 4096,
    ) -> ChoiceScores:
        """log p of each label as the whole answer."""
        return score_choices(
            session.model,
            session.tokenizer,
            session.template,
            self.examples(examples),
            labels,
            drop=drop,
            batch_tokens=batch_tokens,
        )

    def figures(
        self,
        examples: Sequence[Example],
        references: Sequence[TaskAnswer],
        before: Sequence[TaskAnswer],
        after: Sequence[TaskAnswer],
        plan: AnswerPlan,
    ) -> Comparison:
        """Each prompt with its reference and both answers."""
        answered = self.examples(examples)
        if not answered:
            return Comparison(None, None, {}, [])
        samples: list[dict[str, Any]] = [
            {"prompt": e.question, "reference": r.text, "before": b.text, "after": a.text}
            for e, r, b, a in zip(answered, references, before, after, strict=True)
        ]
        both = [self.measure(references, answers, plan) for answers in (before, after)]
        for name, scores in zip(("before_score", "after_score"), both, strict=True):
            for sample, value in zip(samples, scores.headline.rows or (), strict=False):
                sample[name] = value
        texts = [[each.scored for each in answers] for answers in (before, after, references)]
        apart = changes((both[0], texts[0]), (both[1], texts[1]), texts[2])
        notes = [both[1].left_out, *_cut(both[0], "before training"), *_cut(both[1], "after it")]
        return Comparison(both[0], both[1], apart, samples, tuple(note for note in notes if note))


def default_limit(longest: int | None) -> int:
    """The most new tokens of an answer where nobody says: the longest reference and a quarter more.

    At least eight tokens more, in steps of 16; 128 where there are no references.

    >>> default_limit(3), default_limit(100), default_limit(None)
    (16, 128, 128)
    """
    return 128 if longest is None else 16 * math.ceil((longest + max(8, longest / 4)) / 16)


def _rooms(lengths: Sequence[int], limit: int, session: Session) -> Iterator[tuple[list[int], int]]:
    """Prompts that are asked together, and how many new tokens the model has positions for."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    fitting = [i for i in order if lengths[i] + limit <= session.context_length]
    if fitting:
        yield sorted(fitting), limit
    rest = order[len(fitting) :]
    for first in range(0, len(rest), _TOGETHER):
        some = rest[first : first + _TOGETHER]
        yield some, max(1, session.context_length - lengths[some[-1]])


def _texts(examples: Sequence[Example]) -> list[tuple[str]]:
    """The answers as they stand in the rows, thinking aside."""
    found = []
    for example in examples:
        text = str(example.answer).strip()
        found.append((content_of({"content": text}).said.strip() or text,))
    return found


def _cut(scores: Scores, when: str) -> list[str]:
    return [f"{when}, {scores.cut}"] if scores.cut else []
