"""Measuring within a trial: losses of rows, and how fast a run trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from lorakit.adapters import save_adapter
from lorakit.adapters.asking import asking_of
from lorakit.config import RunConfig
from lorakit.data import TokenTable
from lorakit.evaluation.likelihood import per_token, row_losses
from lorakit.run.session import Session


@dataclass(frozen=True)
class RowLosses:
    """Negative log-likelihood of N rows.

    Attributes:
        nats: of each row, summed over its supervised tokens.
        tokens: supervised tokens of each row.
    """

    nats: tuple[float, ...]
    tokens: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Nats per token, Σ nats / Σ tokens."""
        return per_token(self.nats, self.tokens)


@dataclass(frozen=True)
class Pace:
    """How fast a run trained; None where it did not come to its first step.

    Attributes:
        seconds_per_step: median, the first step left out, which warms up.
        tokens_per_second: real tokens.
    """

    seconds_per_step: float | None
    tokens_per_second: float | None


def measure_rows(model: Any, table: TokenTable, batch_tokens: int) -> RowLosses:
    """Losses of rows under a model as it is now, in evaluation mode.

    Args:
        model: a causal LM; of concurrent jobs the one that is installed.
        table: the rows.
        batch_tokens: most tokens of a forward pass.
    """
    nats_S, tokens_S = row_losses(model, table, batch_tokens)
    return RowLosses(tuple(nats_S.tolist()), tuple(tokens_S.tolist()))


def save_pairs(session: Session, folder: Path, config: RunConfig) -> None:
    """Write the pairs that the session's model has now as an adapter folder.

    Args:
        session: of the model.
        folder: where.
        config: of the run, for the record: its base, and how its rows were mapped.
    """
    save_adapter(
        session.model,
        folder,
        identity=session.identity,
        provenance={
            "template": session.template.to_dict(),
            "asking": asking_of(config.model, vars(config.data)),
        },
    )


def spread_rows(table: TokenTable, rows: int) -> TokenTable:
    """So many rows, spread evenly over all."""
    if rows >= len(table):
        return table
    return table.take(np.arange(rows) * len(table) // rows)


def pace_of(steps: Sequence[Mapping[str, Any]]) -> Pace:
    """The pace of a run, from the events of its steps."""
    timed = steps[1:] or steps
    if not timed:
        return Pace(None, None)
    seconds = [step["seconds"] for step in timed]
    return Pace(median(seconds), sum(step["tokens"] for step in timed) / sum(seconds))
