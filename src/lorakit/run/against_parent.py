"""A continued adapter against its parent: on which rows, which is better, and what the store does.

A result that is worse than its parent on the same rows never becomes the current version of a name
by itself. It is compared on the run's own held-out rows, and on the parent's where these can be
read again: the recorded files are there and give the recorded hash. Of the parent's, those that the
run itself trains on are left out: they do not say what it has forgotten.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorakit.adapters import AdapterInfo
from lorakit.adapters.store import Store
from lorakit.config import OutputSpec, RunConfig, load_config, options
from lorakit.data import Dataset, TokenTable
from lorakit.errors import InputError, StoreError
from lorakit.files.wording import command_line
from lorakit.tasks import CAUSAL_LM
from lorakit.training import FitResult, TrainSpec, held_out_loss

MARGIN = 0.02
"""Part of the parent's loss by which a result may be above it on the parent's own rows: other rows
were trained on, and a smaller difference is the noise of a few dozen rows."""
LEAST = 1e-3
"""Nats a token that are no difference, whatever the parent's loss is."""


@dataclass(frozen=True)
class ParentRows:
    """The parent's own held-out rows.

    Attributes:
        table: the rows; None where they cannot be found again.
        why_not: the reason, '' where they are there.
        left_out: how many are not in `table`, because the run trains on them.
    """

    table: TokenTable | None = None
    why_not: str = ""
    left_out: int = 0


def parent_rows(
    info: AdapterInfo, read: Callable[[RunConfig], Dataset], training_S: NDArray[np.uint32]
) -> ParentRows:
    """The rows that were held out when an adapter was trained, if they are still what they were.

    Args:
        info: of the adapter, with what it recorded.
        read: the rows of a configuration, by the adapter's own template.
        training_S: hashes of the rows that the run trains on; of the parent's, these are left out.
    """
    recorded = info.provenance or {}
    flat, digest = recorded.get("config"), recorded.get("data_sha256")
    if not isinstance(flat, Mapping) or not digest:
        return ParentRows(None, "it records no rows")
    names = {option.name for option in options() if option.section == "data"} | {"seed"}
    try:
        config = load_config(None, {name: flat[name] for name in names if name in flat})
        sources = [str(source) for source in (*config.data.data, *config.data.eval_data)]
        if lost := [source for source in sources if not Path(source).expanduser().exists()]:
            return ParentRows(None, f"{lost[0]} is not there")
        rows = read(config)
    except InputError as error:
        return ParentRows(None, f"they cannot be read again: {error}")
    if rows.data_sha256 != digest:
        return ParentRows(None, f"{', '.join(sources)} hold other rows now")
    if not len(rows.eval):
        return ParentRows(None, "it held none out")
    trained_on = np.isin(rows.eval_hashes, training_S)
    left_out = int(trained_on.sum())
    if trained_on.all():
        return ParentRows(None, "this run trains on them", left_out)
    return ParentRows(rows.eval.take(np.flatnonzero(~trained_on)), "", left_out)


@dataclass(frozen=True)
class Measured:
    """A loss on the same rows before and after, nats per supervised token.

    Attributes:
        rows: how many.
        before: of the parent.
        after: of the result.
    """

    rows: int
    before: float
    after: float


@dataclass(frozen=True)
class AgainstParent:
    """What a run came to, beside what it began with.

    Attributes:
        parent: name or path of the adapter that the run went on from; None for the base.
        own: on the run's held-out rows; None where there are none.
        parents: on the parent's held-out rows; None where they were not found again.
        why_not: why they were not, '' where they were or there is no parent.
        left_out: how many of them were left out, because the run trained on them.
        kept: the step that was kept; 0 is what the run began with.
    """

    parent: str | None
    own: Measured | None
    parents: Measured | None
    why_not: str
    left_out: int
    kept: int

    @property
    def worse(self) -> str:
        """On which rows the result is worse, in words; '' where on none."""
        found = []
        if self.own and self.own.after > self.own.before:
            found.append(_said("the held-out rows", self.own))
        if self.parents and self.parents.after - self.parents.before > max(
            LEAST, MARGIN * self.parents.before
        ):
            found.append(_said(f"{self.parent}'s own held-out rows", self.parents))
        return " and ".join(found)

    @property
    def verdict(self) -> str:
        """better, unchanged, worse, or not compared."""
        if self.kept == 0:
            return "unchanged"
        if self.worse:
            return "worse"
        return "better" if self.own or self.parents else "not compared"

    def notes(self) -> list[str]:
        """Sentences for the user."""
        begin = self.parent or "the base"
        notes = []
        if self.verdict == "unchanged":
            what = (
                "the adapter is the parent's, unchanged"
                if self.parent
                else "the adapter is that of step 0, which changes no answer"
            )
            notes.append(f"no step was better than {begin} on the held-out rows: {what}")
        elif self.verdict == "worse":
            notes.append(f"the result is worse than {begin} on {self.worse}")
        elif self.verdict == "not compared" and self.parent:
            notes.append(f"the result was not compared with {begin}: no rows were held out")
        if self.why_not:
            notes.append(f"{begin}'s own held-out rows were not measured: {self.why_not}")
        elif self.left_out:
            notes.append(
                f"{begin}'s own held-out rows were measured without {self.left_out} that this run trains on"
            )
        return notes

    def to_dict(self) -> dict[str, Any]:
        """As result.json has it."""
        return {
            "parent": self.parent,
            "verdict": self.verdict,
            "own_rows": vars(self.own) if self.own else None,
            "parent_rows": vars(self.parents) if self.parents else None,
            "parent_rows_missing": self.why_not,
        }


def table_loss(model: Any, table: TokenTable | None, spec: TrainSpec) -> float | None:
    """Mean loss of a model on rows, nats per supervised token; None for no rows."""
    if table is None:
        return None
    batches = CAUSAL_LM.batches(table, range(len(table)), spec.batch_tokens, model.device)
    return held_out_loss(batches, CAUSAL_LM.loss(model))


def measured(
    table: TokenTable | None, before: float | None, after: float | None
) -> Measured | None:
    """Losses on the same rows, where there are any."""
    if table is None or before is None or after is None:
        return None
    return Measured(len(table), before, after)


def _said(rows: str, measured: Measured) -> str:
    return f"{rows} (loss {measured.after:.4f}, and {measured.before:.4f} before, {measured.rows} rows)"


def against(
    parent: str | None,
    fitted: FitResult,
    own_rows: int,
    parents: Measured | None,
    rows: ParentRows | None = None,
) -> AgainstParent:
    """The comparison of a run that has ended; `rows` are the parent's own."""
    rows = rows or ParentRows()
    own = None
    if fitted.eval_loss is not None and fitted.eval_loss_before is not None:
        own = Measured(own_rows, fitted.eval_loss_before, fitted.eval_loss)
    return AgainstParent(parent, own, parents, rows.why_not, rows.left_out, fitted.best_step)


@dataclass(frozen=True)
class Stored:
    """What became of `save_as`.

    Attributes:
        saved_as: the version in the store, 'invoices@2'; None where it was not stored.
        current: whether the name points at it.
        note: what the user should know, with the line to type; '' for nothing.
    """

    saved_as: str | None = None
    current: bool = False
    note: str = ""


def store_result(output: OutputSpec, adapter: Path, outcome: AgainstParent) -> Stored:
    """Put a run's adapter into the store as `save_as` says, current only where it may be.

    A result that is no better than what the run began with replaces no version: it is kept beside
    the current one, or not at all where the name is new or the result is the parent itself.
    """
    if output.save_as is None:
        return Stored()
    store, name = Store(output.store), output.save_as
    where = ["--store", output.store] if output.store else []
    if outcome.verdict in ("better", "not compared"):
        return Stored(str(store.add(adapter, name).entry), True)
    current = _current(store, name)
    if outcome.parent is None and current is None:
        return Stored(str(store.add(adapter, name).entry), True)
    if current is None or (outcome.parent is not None and outcome.verdict == "unchanged"):
        line = command_line("adapters", "add", adapter, name, *where)
        stays = f"; {name} stays {current}" if current else ""
        return Stored(note=f"not stored{stays}. To store it all the same: {line}")
    added = store.add(adapter, name, current=False).entry
    if added.current:  # the very content that the name points at
        return Stored(str(added), True)
    line = command_line("adapters", "rollback", name, "--to", added.number, *where)
    return Stored(
        str(added),
        False,
        f"stored as {added}, and {name} stays {current}. To make it the current version: {line}",
    )


def _current(store: Store, name: str) -> str | None:
    try:
        return str(store.resolve(name))
    except StoreError:
        return None
