"""What every command needs of a task, and no more."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from lorakit.adapters import AdapterInfo
from lorakit.data import Batch, Dataset, DataSpec, Example, RowCounts, Template, TokenTable
from lorakit.evaluation.bootstrap import Interval
from lorakit.evaluation.kinds import ChosenMetrics
from lorakit.evaluation.metrics import Scores
from lorakit.execution.choices import ChoiceScores
from lorakit.execution.lengths import UNNAMED, context_length
from lorakit.files.cache import Progress, no_progress
from lorakit.models import ModelSpec
from lorakit.models.fingerprint import BaseIdentity
from lorakit.tasks.answers import TaskAnswer
from lorakit.training import Loss, TrainSpec


@dataclass(frozen=True)
class Session:
    """What every command that runs a model holds.

    Attributes:
        model, tokenizer: ready and frozen; the adapter's pairs attached where there is one.
        identity: fingerprint of the base.
        template: how a prompt is put to the model.
        task: what the model is trained for.
        adapter: what was attached, or None.
    """

    model: Any
    tokenizer: Any
    identity: BaseIdentity
    template: Template
    task: "Task"
    adapter: AdapterInfo | None = None

    @property
    def context_length(self) -> int:
        """Longest sequence that the model reads, in tokens; very many where it names no limit."""
        return context_length(self.model.config) or UNNAMED

    @property
    def embeddings(self) -> int:
        """How many tokens the model has an embedding for; a tokenizer may know more."""
        return int(self.model.get_input_embeddings().weight.shape[0])


@dataclass(frozen=True)
class AnswerPlan:
    """How answers are asked for and judged, decided once from all reference answers that there are.

    Attributes:
        chosen: the measures, the one that fits the task first; None where nothing can be asked.
        named: whether the user named them.
        limit: most new tokens of an answer.
        longest: tokens of the longest reference, its end included; None where there is none.
    """

    chosen: ChosenMetrics | None
    named: bool
    limit: int
    longest: int | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The references where they are few short labels; else ()."""
        return self.chosen.labels if self.chosen is not None else ()


@dataclass(frozen=True)
class Comparison:
    """Measures of two sets of predictions for the same examples, and the predictions side by side.

    Attributes:
        before, after: the measures; None where nothing was asked.
        changes: of after - before, with its interval, for each measure that has one.
        samples: one mapping an example, as a page shows it.
        notes: what the reader has to know of the measures.
    """

    before: Scores | None
    after: Scores | None
    changes: dict[str, Interval]
    samples: list[dict[str, Any]]
    notes: tuple[str, ...] = ()


class Task(Protocol):
    """One thing that models are trained for."""

    @property
    def name(self) -> str:
        """What users call it."""

    def load(
        self, spec: ModelSpec, data: DataSpec | None = None, *, progress: Progress = no_progress
    ) -> Session:
        """The base model, frozen and in evaluation mode, and what belongs to it.

        Raises:
            ModelError: it cannot be loaded, or is no model for this task.
        """

    def rows(
        self, spec: DataSpec, session: Session, *, seed: int, template: Template | None = None
    ) -> Dataset:
        """Training rows and validation rows of a file, as tokens.

        Args:
            spec: which rows, and how their columns are read.
            session: of the model that is to read them.
            seed: of which rows are held out.
            template: a recorded one, in place of the one that is resolved.

        Raises:
            DataError: a row cannot be used; the message names file and line.
        """

    def rows_to_measure(
        self, spec: DataSpec, session: Session
    ) -> tuple[TokenTable, Sequence[Example], RowCounts]:
        """Every row of `spec.data` as tokens and as an example, and what was done to them.

        Raises:
            DataError: as `rows`.
        """

    def batches(
        self, table: TokenTable, rows: Iterable[int], batch_tokens: int, device: Any
    ) -> list[Batch]:
        """These rows of a table as batches of at most so many tokens, on the device."""

    def loss(self, model: Any, spec: TrainSpec | None = None, *, recompute: bool = False) -> Loss:
        """The loss of a batch by this model: calling it with a batch gives (sum, count).

        Args:
            model: that computes.
            spec: of the run that trains by it; None where it only measures.
            recompute: activation checkpointing while it trains.
        """

    def examples(self, rows: Sequence[Example], most: int | None = None) -> list[Example]:
        """Those that a prediction can be asked and judged for; up to `most`, spread evenly."""

    def plan_answers(
        self,
        examples: Sequence[Example],
        session: Session,
        tables: Sequence[TokenTable],
        *,
        limit: int | Literal["auto"] = "auto",
        metrics: str | Sequence[str] = "auto",
    ) -> AnswerPlan:
        """How answers are asked for and judged.

        Args:
            examples: all rows with reference answers, not those alone that will be asked.
            session: of the model that is to answer.
            tables: rows as tokens, whose longest answer the limit comes from.
            limit: most new tokens of an answer; 'auto' by the lengths of the references.
            metrics: names, or 'auto' by the references.
        """

    def predict(
        self, session: Session, examples: Sequence[Example], limit: int
    ) -> Sequence[TaskAnswer]:
        """The model's answer to each of `examples(…)`; `limit`: most new tokens of one."""

    def references(self, session: Session, examples: Sequence[Example]) -> Sequence[TaskAnswer]:
        """What a perfect model would answer to each of `examples(…)`."""

    def measure(
        self, references: Sequence[TaskAnswer], predictions: Sequence[TaskAnswer], plan: AnswerPlan
    ) -> Scores:
        """The measures of predictions, the one that fits the task first."""

    def likelihoods(
        self,
        session: Session,
        examples: Sequence[Example],
        labels: Sequence[str],
        *,
        drop: Sequence[str] = (),
        batch_tokens: int = 4096,
    ) -> ChoiceScores:
        """How likely the model finds each label as the answer to each of `examples(…)`."""

    def figures(
        self,
        examples: Sequence[Example],
        references: Sequence[TaskAnswer],
        before: Sequence[TaskAnswer],
        after: Sequence[TaskAnswer],
        plan: AnswerPlan,
    ) -> Comparison:
        """Predictions before and after training side by side, both measured alike."""
