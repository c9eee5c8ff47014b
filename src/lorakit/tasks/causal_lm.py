"""Causal language models: prompts and completions, judged by greedy answers."""

from collections.abc import Iterable, Sequence
from typing import Any

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
from lorakit.evaluation.metrics import Scores, score
from lorakit.execution.generate import generate
from lorakit.files.cache import Progress, no_progress
from lorakit.models import ModelSpec, identify, load_model
from lorakit.tasks.task import Comparison, Session
from lorakit.training import CausalLoss


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

    def loss(self, model: Any, *, recompute: bool = False) -> CausalLoss:
        """Negative log-likelihood in nats, summed over supervised tokens."""
        return CausalLoss(model, recompute=recompute)

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

    def predict(self, session: Session, examples: Sequence[Example], limit: int) -> list[str]:
        """Greedy answers to the prompts of examples that have an answer."""
        prompts = [
            encode_prompt(example, session.tokenizer, session.template).tolist()
            for example in self.examples(examples)
        ]
        if not prompts:
            return []
        completions = generate(
            session.model,
            session.tokenizer,
            prompts,
            template=session.template,
            max_new_tokens=limit,
        )
        return [completion.text.strip() for completion in completions]

    def measure(
        self, examples: Sequence[Example], predictions: Sequence[str], metrics: Any = "auto"
    ) -> Scores:
        """Scores of answers against the references of the examples."""
        references = [str(example.answer).strip() for example in self.examples(examples)]
        return score(list(predictions), references, metrics)

    def figures(
        self, examples: Sequence[Example], before: Sequence[str], after: Sequence[str]
    ) -> Comparison:
        """Each prompt with its reference and both answers."""
        answered = self.examples(examples)
        if not answered:
            return Comparison({}, {}, [])
        samples: list[dict[str, Any]] = [
            {"prompt": e.question, "reference": str(e.answer).strip(), "before": b, "after": a}
            for e, b, a in zip(answered, before, after, strict=True)
        ]
        both = [self.measure(answered, answers) for answers in (before, after)]
        for name, scores in zip(("before_score", "after_score"), both, strict=True):
            best = scores.metrics[0]
            for sample, value in zip(samples, best.rows or (), strict=False):
                sample[name] = value
        return Comparison(both[0].values, both[1].values, samples, both[1].left_out)
