"""What every command needs of a task, and no more."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lorakit.adapters import AdapterInfo
from lorakit.data import Batch, Dataset, DataSpec, Example, RowCounts, Template, TokenTable
from lorakit.evaluation.metrics import Scores
from lorakit.files.cache import Progress, no_progress
from lorakit.models import ModelSpec
from lorakit.models.fingerprint import BaseIdentity
from lorakit.training import Loss


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
        """Longest sequence that the model reads, in tokens."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def embeddings(self) -> int:
        """How many tokens the model has an embedding for; a tokenizer may know more."""
        return int(self.model.get_input_embeddings().weight.shape[0])


@dataclass(frozen=True)
class Comparison:
    """Measures of two sets of predictions for the same examples, and the predictions side by side.

    Attributes:
        before, after: each measure by its name.
        samples: one mapping an example, as a page shows it.
        left_out: which measures would fit as well and what they need; empty where there are none.
    """

    before: dict[str, float]
    after: dict[str, float]
    samples: list[dict[str, Any]]
    left_out: str = ""


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

    def loss(self, model: Any, *, recompute: bool = False) -> Loss:
        """The loss of a batch by this model: calling it with a batch gives (sum, count)."""

    def examples(self, rows: Sequence[Example], most: int | None = None) -> list[Example]:
        """Those that a prediction can be asked and judged for; up to `most`, spread evenly."""

    def predict(self, session: Session, examples: Sequence[Example], limit: int) -> list[str]:
        """The model's prediction for each of `examples(…)`; `limit`: most new tokens of one."""

    def measure(
        self, examples: Sequence[Example], predictions: Sequence[str], metrics: Any = "auto"
    ) -> Scores:
        """The measures of predictions, the one that fits the task first."""

    def figures(
        self, examples: Sequence[Example], before: Sequence[str], after: Sequence[str]
    ) -> Comparison:
        """Predictions before and after training side by side, both measured alike."""
