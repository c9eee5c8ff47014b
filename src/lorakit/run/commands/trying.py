"""Which way to combine adapters is best on their own tasks: each is measured on held-out rows of all.

The rows of a task are read as its adapter was trained: by its mapping and its template. Where the file
is the one that the adapter was trained on, the rows are those that were held out of that training.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from lorakit.adapters import load_adapter, read_adapter
from lorakit.adapters.combine import Combined, combine
from lorakit.adapters.pairs import StoredAdapter, write_stored
from lorakit.adapters.parents import Part, common_config
from lorakit.adapters.specs import CombineSpec
from lorakit.config import RunConfig
from lorakit.errors import ConfigError
from lorakit.evaluation.bootstrap import bootstrap_mean
from lorakit.evaluation.metrics import MetricScore
from lorakit.files.cache import Progress, no_progress
from lorakit.lora import detach
from lorakit.run.commands.parent_rows import TaskRows, task_rows, train_line
from lorakit.run.named import Found
from lorakit.run.recorded import with_recorded
from lorakit.run.session import Session, open_base
from lorakit.training import held_out_loss

SUM, WEIGHTED = "sum", "weighted sum"


@dataclass(frozen=True)
class TriedWay:
    """A way to combine, or one adapter alone, and how well it does each task.

    Attributes:
        name: sum, weighted sum, ties, dare; or an adapter's name.
        measures: which measure `scores` holds, for each task.
        scores: for each task the measure that fits it first, from 0 to 1; None where it has no
            answers.
        losses: for each task held-out nats per token.
        by_row: for each task the score of every row; empty where the measure has none by row.
    """

    name: str
    measures: tuple[str, ...]
    scores: tuple[float | None, ...]
    losses: tuple[float, ...]
    by_row: tuple[tuple[float, ...], ...] = ()

    @property
    def mean(self) -> float | None:
        """The mean score over the tasks; None where one has none."""
        known = [score for score in self.scores if score is not None]
        return fmean(known) if len(known) == len(self.scores) else None

    @property
    def rank(self) -> tuple[float, float]:
        """What is best has the largest: by mean score, then by mean loss."""
        return (self.mean if self.mean is not None else 0.0, -fmean(self.losses))


@dataclass(frozen=True, eq=False)
class Tried:
    """What was measured of all ways.

    Attributes:
        tasks: names of the adapters, in the order of all scores.
        alone: each adapter by itself, for reference.
        ways: the ways to combine.
        best: the one with the best mean.
        rows: of each task.
        notes: what to know about the rows and the figures.
        train: the command that trains one adapter on the rows of all tasks; empty where their rows
            are mapped in different ways.
        made: the adapter of the way that was asked for, or else of the best.
        chosen: the name of that way.
        place: where it was written, in words.
    """

    tasks: tuple[str, ...]
    alone: tuple[TriedWay, ...]
    ways: tuple[TriedWay, ...]
    best: TriedWay
    rows: tuple[int, ...]
    notes: tuple[str, ...]
    train: str
    made: Combined
    chosen: str
    place: str = ""


Told = Callable[[str, int, int], None]
"""Told of each measurement: its name, how many are done, how many there are."""


def try_ways(
    config: RunConfig,
    adapters: Sequence[Found],
    parts: Sequence[Part],
    options: Mapping[str, Any],
    *,
    source: str,
    force: bool = False,
    progress: Progress = no_progress,
    told: Told = lambda *_: None,
) -> Tried:
    """Measure every way to combine adapters on held-out rows of each one's task.

    Args:
        config: `data.data` names one source for each adapter, in their order.
        adapters: where they are.
        parts: the same, read, with the weights that were asked for.
        options: fields of `CombineSpec`: rank or energy, density and seed for the ways that have
            them; with how that way is made, else the best.
        source: what to call the result.
        force: measure although the adapters belong to another base.
        progress: told of a download of the built-in model.
        told: told of each measurement.

    Raises:
        ConfigError: there are not as many sources as adapters.
        InputError: something given cannot be used.
    """
    sources = config.data.data
    if len(sources) != len(adapters):
        raise ConfigError(
            f"{len(adapters)} adapters and {len(sources)} sources of rows: give one for each adapter, in "
            "their order, such as --data a.csv,b.csv"
        )
    common_config(
        parts, force=force
    )  # adapters of different bases are refused before anything long
    # The base is that of all; how rows are read is each adapter's own.
    model = with_recorded(config, adapters).model
    config = replace(config, model=model, given=config.given | {"model"})
    base = open_base(config.model, progress=progress)
    tasks = [
        task_rows(config, base, adapter, rows)
        for adapter, rows in zip(adapters, sources, strict=True)
    ]
    candidates = _candidates(parts, options)
    total = len(adapters) + len(candidates)
    alone = []
    for number, adapter in enumerate(adapters):
        told(adapter.name, number, total)
        alone.append(_measured(adapter.name, adapter.folder, base, tasks, force=force))
    ways, made = [], {}
    for number, (name, (weighted, way)) in enumerate(candidates.items(), len(adapters)):
        told(name, number, total)
        made[name] = combine(weighted, way, source=source, force=force)
        ways.append(_measured_adapter(name, made[name].adapter, base, tasks, force=force))
    told("", total, total)
    best = max(ways, key=lambda way: way.rank)
    chosen = options.get("how") or best.name
    return Tried(
        tuple(task.name for task in tasks),
        tuple(alone),
        tuple(ways),
        best,
        tuple(task.rows for task in tasks),
        _notes(tasks, alone, ways, best, candidates),
        train_line([read_adapter(a.folder) for a in adapters], sources),
        made[chosen],
        chosen,
    )


def _candidates(
    parts: Sequence[Part], options: Mapping[str, Any]
) -> dict[str, tuple[Sequence[Part], CombineSpec]]:
    """The ways by name. What gives full rank is cut, to the sum of the parents' ranks by default."""
    equal = [replace(part, weight=1.0) for part in parts]
    own = parts
    if all(part.weight == 1 for part in parts):
        own = [replace(part, weight=1 / len(parts)) for part in parts]
    cut = {name: options.get(name) for name in ("rank", "energy")}
    if cut == {"rank": None, "energy": None}:
        ranks = [max(pair.rank for pair in part.adapter.pairs.values()) for part in parts]
        cut["rank"] = sum(ranks)
    sparse: dict[str, Any] = {**cut, "density": options.get("density")}
    seeded = {**sparse, "seed": options.get("seed") or 0}
    ways: dict[str, tuple[Sequence[Part], CombineSpec]] = {
        SUM: (equal, CombineSpec("linear")),
        WEIGHTED: (own, CombineSpec("linear")),
        "ties": (parts, CombineSpec("ties", **sparse)),
        "dare": (parts, CombineSpec("dare", **seeded)),
    }
    how = options.get("how")
    if how is not None and how not in ways:
        given = {"dare_ties": seeded, "svd": cut}.get(how, {})
        ways[how] = (parts, CombineSpec(how, **given))
    return ways


def _measured(
    name: str, folder: Path, base: Session, tasks: Sequence[TaskRows], *, force: bool
) -> TriedWay:
    load_adapter(base.model, folder, identity=base.identity, force=force)
    try:
        found = [_of_task(task) for task in tasks]
    finally:
        detach(base.model)
    scores = [score for score, _ in found]
    return TriedWay(
        name,
        tuple("" if score is None else score.name for score in scores),
        tuple(None if score is None else score.value for score in scores),
        tuple(loss for _, loss in found),
        tuple(() if score is None else score.rows or () for score in scores),
    )


def _of_task(task: TaskRows) -> tuple[MetricScore | None, float]:
    """The measure that fits a task first, and the held-out loss, of the model as it is now."""
    session, kind = task.session, task.session.task
    batches = kind.batches(
        task.table, range(len(task.table)), task.batch_tokens, session.model.device
    )
    loss = held_out_loss(batches, kind.loss(session.model))
    if not task.examples:
        return None, loss
    answers = kind.predict(session, task.examples, task.plan.limit)
    return kind.measure(task.references, answers, task.plan).headline, loss


def _measured_adapter(
    name: str, adapter: StoredAdapter, base: Session, tasks: Sequence[TaskRows], *, force: bool
) -> TriedWay:
    with tempfile.TemporaryDirectory() as place:
        folder = write_stored(Path(place) / "adapter", adapter)
        return _measured(name, folder, base, tasks, force=force)


def _notes(
    tasks: Sequence[TaskRows],
    alone: Sequence[TriedWay],
    ways: Sequence[TriedWay],
    best: TriedWay,
    candidates: Mapping[str, tuple[Sequence[Part], CombineSpec]],
) -> tuple[str, ...]:
    notes = [task.note for task in tasks]
    spec = candidates["ties"][1]
    cut = f"rank {spec.rank}" if spec.rank is not None else f"{spec.energy:g} of the energy"
    dare = candidates["dare"][1]
    notes.append(
        f"ties keeps {spec.share:g} of the elements, dare {dare.share:g}; both are cut to {cut}"
    )
    notes += _told_apart(best, [way for way in ways if way is not best])
    better = [one for one in alone if one.rank > best.rank]
    if better:
        top = max(better, key=lambda one: one.rank)
        notes.append(f"{top.name} alone has a better mean than every combination")
    return tuple(notes)


def _told_apart(best: TriedWay, others: Sequence[TriedWay]) -> list[str]:
    """Whether the rows can tell the best from the next, by an interval paired by row."""
    second = max(others, key=lambda way: way.rank)
    pairs = list(zip(best.by_row, second.by_row, strict=True))
    if not pairs or not all(len(a) == len(b) > 1 for a, b in pairs):
        return []
    generator = np.random.default_rng(0)
    # The mean over tasks: each task counts the same, however many rows it has.
    total = sum(len(a) for a, _ in pairs)
    weighted = [(np.array(a) - np.array(b)) * total / (len(a) * len(pairs)) for a, b in pairs]
    spread = bootstrap_mean(np.concatenate(weighted), generator=generator)
    said = (
        f"{best.name} and the next, {second.name}, differ by {spread.mean:.3f} (95 % interval "
        f"{spread.low:+.3f} to {spread.high:+.3f}, paired by row)"
    )
    if spread.covers(0.0):
        said += ": these rows cannot tell which of them is better"
    return [said]


def with_scores(tried: Tried) -> Combined:
    """The adapter that was chosen, with what was measured of it in its record."""
    made = tried.made
    way = next(way for way in tried.ways if way.name == tried.chosen)
    measured = {
        "way": way.name,
        "tasks": [
            {"adapter": task, "rows": rows, "measure": measure, "score": score, "loss": loss}
            for task, rows, measure, score, loss in zip(
                tried.tasks, tried.rows, way.measures, way.scores, way.losses, strict=True
            )
        ],
    }
    assert made.adapter.record is not None
    known = {**(made.adapter.record.provenance or {}), "combined_on": measured}
    record = replace(made.adapter.record, provenance=known)
    return replace(made, adapter=replace(made.adapter, record=record))
