"""What a run begins with beside its model and its rows: rate, moments, and the parent's own rows."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorakit.config import RunConfig, options
from lorakit.data import Dataset
from lorakit.data.rehearsal import Rehearsal
from lorakit.files.whole import write_json
from lorakit.kernels.chosen import kernels_of
from lorakit.run import folder as folders
from lorakit.run.against_parent import (
    AgainstParent,
    ParentRows,
    against,
    measured,
    parent_rows,
    table_loss,
)
from lorakit.run.continuing import Beginning, Parent, go_on
from lorakit.run.fitting import Report
from lorakit.run.prepared import Prepared
from lorakit.run.rate_probe import read_probe
from lorakit.run.remembering import remember
from lorakit.run.session import Session, recorded_template
from lorakit.training import Checkpoints, FitResult, Moments, Schedule


@dataclass(frozen=True)
class Begins:
    """What a run begins with, beside its model and its rows.

    Attributes:
        schedule: with the rate and the warm-up that it takes.
        moments: AdamW's, of its parent.
        going: how a parent is gone on from; None for a fresh run.
        rows: the parent's own held-out rows.
        loss: of the parent on these.
    """

    schedule: Schedule
    moments: Moments | None = None
    going: Beginning | None = None
    rows: ParentRows = field(default_factory=ParentRows)
    loss: float | None = None

    @property
    def rehearsal(self) -> Rehearsal | None:
        """How new rows and rows that the parent knows are taken; None where all are taken alike."""
        return self.going.rehearsing.rehearsal if self.going else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user."""
        return self.going.notes if self.going else ()


def begin(
    ready: Prepared,
    report: Report,
    should_stop: Callable[[], bool],
    lost: Sequence[str] = (),
) -> Begins:
    """Settle the rate and the moments of a run whose pairs, or its parent's, are in the model.

    What a probe finds is kept in the run folder: a resumed run does not repeat it. `lost` says what
    cannot be used of the parent's folder.
    """
    spec, session, data, parent = ready.config.train, ready.session, ready.data, ready.parent
    if parent is None:
        return Begins(Schedule(ready.steps, ready.learning_rate, spec))
    rows = parent_rows(
        parent.info,
        lambda config: session.task.rows(
            config.data,
            session,
            seed=config.train.seed,
            template=recorded_template(parent.info, None),
        ),
        data.train_hashes,
    )
    run = run_hash(ready.config, session, data, parent)
    file = Path(ready.config.output.out) / folders.PROBE
    if spec.learning_rate == "auto":
        report({"kind": "stage", "name": "probe"})
    going = go_on(
        session.model,
        data,
        [table for table in (data.eval, rows.table) if table is not None],
        ready.steps,
        spec,
        task=session.task,
        recompute=ready.estimate.recompute,
        probed=read_probe(file, run) if ready.config.output.resume else None,
        lost=lost,
        should_stop=should_stop,
        report=report,
    )
    if going.probed is not None:
        write_json(file, {"run": run, **going.probed.to_dict()})
    for note in going.notes:
        report({"kind": "note", "text": note})
    loss = table_loss(session.model, rows.table, spec)
    return Begins(going.schedule, going.moments, going, rows, loss)


def outcome_of(
    ready: Prepared, begins: Begins, fitted: FitResult
) -> tuple[AgainstParent, dict[str, Any]]:
    """A run that has ended beside what it began with, and what result.json says of that.

    What is known of the pairs that are in the model is remembered, for saving.
    """
    model, spec, rows = ready.session.model, ready.config.train, begins.rows
    rehearsing = begins.going.rehearsing if begins.going else None
    remember(model, fitted, ready.data, ready.steps, spec, rehearsing)
    outcome = against(
        ready.parent.found.name if ready.parent else None,
        fitted,
        len(ready.data.eval),
        measured(rows.table, begins.loss, table_loss(model, rows.table, spec)),
        rows,
    )
    probed = begins.going.probed if begins.going else None
    return outcome, {
        "learning_rate": begins.schedule.learning_rate,
        "probe": probed.to_dict() if probed else None,
        "new_rows": rehearsing.to_dict() if rehearsing else None,
        "against_parent": outcome.to_dict(),
    }


def checkpoints_of(ready: Prepared, folder: Path, *, resume: bool) -> Checkpoints:
    """Where a run's checkpoints lie, and what another run has to have alike to go on from them."""
    session = ready.session
    run = run_hash(ready.config, session, ready.data, ready.parent)
    return Checkpoints(folder, run, resume, kernels_of(session.model).name)


def run_hash(
    config: RunConfig, session: Session, data: Dataset, parent: Parent | None = None
) -> str:
    """Hash of what the numbers of a run depend on: a checkpoint of another run is refused."""
    flat = config.to_flat()
    # Rows and parent count by their content, wherever they lie.
    elsewhere = {option.name for option in options() if option.section in ("together", "output")}
    for name in ("data", "eval_data", "from", *elsewhere):
        flat.pop(name)
    parts = [flat, session.identity.to_dict(), data.data_sha256, str(session.model.dtype)]
    parts += [parent.content] if parent else []
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
