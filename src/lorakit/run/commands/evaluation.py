"""`lorakit eval`: rows and a model or adapter -> loss and scores."""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.adapters.measurements import Measurement
from lorakit.config import RunConfig
from lorakit.data import Example, TokenTable, check_sources
from lorakit.data.notes import length_notes
from lorakit.data.sources import measuring_notes
from lorakit.errors import DataError
from lorakit.evaluation.intervals import intervals
from lorakit.evaluation.metrics import check_names
from lorakit.evaluation.scores import Scores
from lorakit.execution.choices import ChoiceScores
from lorakit.files.cache import Progress, no_progress
from lorakit.files.whole import write_json, write_text
from lorakit.lora.acting import acting_on
from lorakit.run import folder as folders
from lorakit.run.choosing import MOST_CHOICES, choice_figures, outside_note
from lorakit.run.invocation_rows import silent_note
from lorakit.run.machine import machine, peak_memory, versions
from lorakit.run.recorded import reading_rows, with_recorded
from lorakit.run.recording import check_recording, record_measurement
from lorakit.run.session import Session, open_adapted
from lorakit.tasks import AnswerPlan, TaskAnswer
from lorakit.training import held_out_loss


def run_evaluation(
    config: RunConfig,
    *,
    adapter: str | Path | None,
    metrics: str,
    out: Path | None,
    choices: Sequence[str] = (),
    record: bool = False,
    force: bool = False,
    progress: Progress = no_progress,
    session: Session | None = None,
) -> dict[str, Any]:
    """Measure on every row of `config.data.data` and return what `result.json` holds.

    Args:
        config: model, rows and limits; what was not given is taken from the adapter's record.
        adapter: a folder or a name in the store `config.output.store`, or None for the base.
        metrics: 'auto', 'none', or names with commas between.
        out: folder for `result.json` and `answers.jsonl`, which must be empty; None writes none.
        choices: labels whose likelihood as the answer is measured; where none are given and the
            reference answers are few short labels, those.
        record: keep the scores with the adapter.
        force: use the adapter although it was trained on another base.
        progress: told of a download of the built-in model.
        session: a model that is loaded already, in place of `config.model` and `adapter`.

    Raises:
        InputError: something given cannot be used.
    """
    started = time.perf_counter()
    if not config.data.data:
        raise DataError("no rows: give --data")
    check_sources(config.data.data)
    chosen = metrics if metrics in ("auto", "none") else check_names(metrics.split(","))
    if out is not None:
        folders.check_folder(out, resume=False)
    given = config
    if record:
        check_recording(adapter)
    if session is None:
        config = with_recorded(config, adapter, packing=True)
    session = session or open_adapted(
        config.model,
        adapter,
        config.data,
        store=config.output.store,
        force=force,
        progress=progress,
    )
    with reading_rows(given, config, adapter):
        table, examples, report = session.task.rows_to_measure(config.data, session)
    notes = [*measuring_notes(config.data.data), report.reading]
    notes += length_notes(report, "rows", config.data.too_long, config.data.cut)
    if (acting := acting_on(session.model)) is not None:
        notes += silent_note(table, acting.invocation, session.tokenizer)
    asked = _ask(session, config, examples, table, chosen, choices)
    figures = _result(config, session, adapter, table, examples, asked, notes)
    figures["seconds"] = time.perf_counter() - started
    if record and adapter is not None:
        measured = Measurement.of_result(figures, [str(source) for source in config.data.data])
        figures["recorded"] = record_measurement(adapter, config.output.store, measured)
    if out is not None:
        folders.make_folder(out)
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in asked.lines())
        write_text(out / "answers.jsonl", "".join(lines))
        write_json(out / folders.RESULT, figures)
    return figures


def _result(
    config: RunConfig,
    session: Session,
    adapter: str | Path | None,
    table: TokenTable,
    examples: Sequence[Example],
    asked: "_Asked",
    notes: Sequence[str],
) -> dict[str, Any]:
    """The figures; docs/results.md has a line for each."""
    task, device, scores = session.task, session.model.device, asked.scores
    batches = task.batches(table, range(len(table)), config.train.batch_tokens, device)
    loss = held_out_loss(batches, task.loss(session.model))
    result: dict[str, Any] = {
        "model": session.identity.name,
        "adapter": str(adapter) if adapter else None,
        "eval_loss": loss,
        "perplexity": math.exp(loss),
        "scores": {} if scores is None else scores.values,
        "headline": None if scores is None else scores.headline.name,
        "intervals": asked.intervals(),
        "max_new_tokens": None if scores is None else scores.limit,
        "answers_cut": 0 if scores is None else scores.reached,
        "choices": choice_figures(asked.choices, asked.references),
        "rows": len(table),
        "tokens": table.tokens,
        "loss_tokens": table.loss_tokens,
        "peak_memory_bytes": peak_memory(device),
        "seconds": None,  # known at the end
        "template": session.template.to_dict(),
        "data_sha256": content_hash(examples),
        "recorded": None,
        "versions": versions(),
        "machine": machine(device, session.model),
        "notes": [*notes, *asked.notes()],
    }
    return result


@dataclass(frozen=True)
class _Asked:
    """What was asked of a model, and what came of it."""

    examples: Sequence[Example]
    references: Sequence[TaskAnswer]
    answers: Sequence[TaskAnswer]
    plan: AnswerPlan
    scores: Scores | None
    choices: ChoiceScores | None

    def intervals(self) -> dict[str, Any]:
        """Of each score that has one, by its name."""
        if self.scores is None:
            return {}
        texts = [[each.scored for each in some] for some in (self.answers, self.references)]
        return {name: one.to_dict() for name, one in intervals(self.scores, *texts).items()}

    def notes(self) -> list[str]:
        """Which measures were taken and why, and what the reader has to know of them."""
        labels = None if self.choices is None else self.choices.choices
        outside = [] if labels is None else [outside_note(labels, self.references)]
        scores = self.scores
        said = [] if scores is None else [scores.why, scores.left_out, scores.cut]
        return [note for note in (*said, *outside) if note]

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines of answers.jsonl; what was not asked is null."""
        rows = self.scores.headline.rows if self.scores is not None else None
        likely = None if self.choices is None else self.choices.probabilities
        for i, (example, reference) in enumerate(zip(self.examples, self.references, strict=True)):
            p = {} if self.choices is None or likely is None else dict(
                zip(self.choices.choices, likely[i].tolist(), strict=True)
            )  # fmt: skip
            yield {
                "prompt": example.question,
                "reference": reference.text,
                "answer": self.answers[i].text if self.answers else None,
                "finished": self.answers[i].finished if self.answers else None,
                "score": None if rows is None else rows[i],
                "choice": self.choices.picked[i] if self.choices else None,
                "probability": max(p.values()) if p else None,
                "probabilities": p or None,
                "origin": example.origin,
            }


def _ask(
    session: Session,
    config: RunConfig,
    examples: Sequence[Example],
    table: TokenTable,
    metrics: str | tuple[str, ...],
    choices: Sequence[str],
) -> _Asked:
    """Answers and the likelihood of labels, as far as they are wanted and there is an answer."""
    task = session.task
    answered = task.examples(examples)
    if choices and not answered:
        raise DataError("choices: the rows are plain text, which has no answers to choose")
    named = "auto" if metrics == "none" else metrics
    limit = config.output.max_new_tokens
    plan = task.plan_answers(examples, session, (table,), limit=limit, metrics=named)
    wanted = tuple(choices) if choices or metrics == "none" else plan.labels
    references = task.references(session, answered) if metrics != "none" or wanted else []
    if choices:
        outside_note(choices, references)  # before anything that takes long
    answers: Sequence[TaskAnswer] = []
    scores = None
    if metrics != "none" and answered:
        answers = task.predict(session, answered, plan.limit)
        scores = task.measure(references, answers, plan)
    likely = None
    if wanted and answered and (choices or len(wanted) <= MOST_CHOICES):
        likely = task.likelihoods(
            session,
            answered,
            wanted,
            drop=config.data.drop,
            batch_tokens=config.train.batch_tokens,
        )
    kept = answered if references else []
    return _Asked(kept, references, answers, plan, scores, likely)


def content_hash(examples: Sequence[Example]) -> str:
    """SHA-256 of the content of rows in their order, whatever file they came from."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(hashlib.sha256(example.canonical()).digest())
    return digest.hexdigest()
