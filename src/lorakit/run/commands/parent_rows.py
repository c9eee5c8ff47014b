"""The rows that an adapter's task is measured on: those that were held out of its own training.

They are read as the adapter was trained, by its mapping and its template. A file that is not the one of
its training is measured whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit.adapters import AdapterInfo, read_adapter
from lorakit.adapters.asking import asking_in
from lorakit.config import RunConfig
from lorakit.data import Example, TokenTable, read_rows
from lorakit.data.given import GivenRows, Source
from lorakit.files.wording import command_line
from lorakit.models import default
from lorakit.run.named import Found
from lorakit.run.recorded import recorded_mapping, with_recorded
from lorakit.run.session import Session, recorded_template
from lorakit.tasks import AnswerPlan, TaskAnswer

ROWS = 200
"""The most rows of a task that are measured, where no other number is given."""


@dataclass(frozen=True)
class TaskRows:
    """The rows that one parent's task is measured on.

    Attributes:
        name: of the adapter.
        session: the base, with the template that the adapter was trained with.
        table: the rows as tokens.
        examples: those that have an answer to compare with.
        references: their answers.
        plan: the measures that fit them, and how long answers may be.
        batch_tokens: of one pass.
        rows: how many.
        note: which rows these are, in a sentence.
    """

    name: str
    session: Session
    table: TokenTable
    examples: Sequence[Example]
    references: Sequence[TaskAnswer]
    plan: AnswerPlan
    batch_tokens: int
    rows: int
    note: str


def task_rows(config: RunConfig, base: Session, adapter: Found, source: Source) -> TaskRows:
    """The rows of one parent's task: those that were held out of its training, where it says which."""
    info = read_adapter(adapter.folder)
    mapped = with_recorded(replace(config, data=replace(config.data, data=(source,))), adapter)
    template = recorded_template(info, config.data) or base.template
    session = replace(base, template=template)
    most = config.data.max_eval_rows or ROWS
    origins = _held_out(mapped, session, info, source)
    rows = []
    spec = mapped.data
    for row in read_rows((*spec.data, *_eval_data(info)) if origins else spec.data):
        if not origins or row.origin in origins:
            rows.append(dict(row.fields))
        if len(rows) == most:
            break
    held = GivenRows(rows, str(source))
    what = (
        f"held out when {adapter.name} was trained"
        if origins
        else f"not known to be what {adapter.name} was trained on, so none is held back"
    )
    note = f"{adapter.name}: {len(rows):,} rows of {source}, {what}"
    settled = replace(spec, data=(held,), max_rows=None, eval_data=())
    task = session.task
    table, examples, _ = task.rows_to_measure(settled, session)
    answered = task.examples(examples)
    plan = task.plan_answers(examples, session, (table,), limit=config.output.max_new_tokens)
    return TaskRows(
        *(adapter.name, session, table, answered, task.references(session, answered), plan),
        batch_tokens=config.train.batch_tokens,
        rows=len(rows),
        note=note,
    )


def _eval_data(info: AdapterInfo) -> tuple[str, ...]:
    """The files of held-out rows that a training recorded, where they are still there."""
    recorded = recorded_run(info).get("eval_data") or ()
    return tuple(recorded) if all(Path(str(name)).exists() for name in recorded) else ()


def recorded_run(info: AdapterInfo) -> Mapping[str, Any]:
    """The options of the run that trained an adapter; empty where they are not known."""
    known = (info.provenance or {}).get("config")
    return known if isinstance(known, Mapping) else {}


def _held_out(
    config: RunConfig, session: Session, info: AdapterInfo, source: Source
) -> frozenset[str]:
    """Where the rows come from that were held out of a training; empty where the rows are others."""
    known, hashed = recorded_run(info), (info.provenance or {}).get("data_sha256")
    if not known or not hashed or not isinstance(source, str):
        return frozenset()
    names = ("eval_share", "max_rows", "max_eval_rows", "max_length", "too_long")
    same = {name: known[name] for name in names if name in known}
    spec = replace(
        config.data, data=(source,), eval_data=_eval_data(info), drop=tuple(known.get("drop") or ())
    )
    data = session.task.rows(
        replace(spec, **same), session, seed=int(known.get("seed", 0)), template=session.template
    )
    if data.data_sha256 != hashed:
        return frozenset()
    return frozenset(example.origin for example in data.eval_examples)


def train_line(infos: Sequence[AdapterInfo], sources: Sequence[Source]) -> str:
    """The command that trains one adapter on the rows of all tasks; empty where none can.

    Args:
        infos: of the adapters.
        sources: of their rows.
    """
    mappings = [recorded_mapping(info) for info in infos]
    if any(mapping != mappings[0] for mapping in mappings):
        return ""
    if not all(isinstance(source, str) for source in sources):
        return ""
    known = recorded_run(infos[0])
    model = asking_in(infos[0].provenance).get("model")
    words = ["train"]
    if model and model != default.NAME:
        words += ["--model", str(model)]
    texts = [str(source) for source in sources]
    if any("," in text for text in texts):
        words += [word for text in texts for word in ("--data", text)]
    else:
        words += ["--data", ",".join(texts)]
    for name, value in mappings[0].items():
        words += [f"--{name}", value]
    for name in ("system", "template"):
        if (value := known.get(name)) and value != "auto":
            words += [f"--{name}", str(value)]
    ranks = [rank for info in infos for rank in info.ranks.values()]
    return command_line(*words, "--rank", max(ranks), "--out", "runs/both")
