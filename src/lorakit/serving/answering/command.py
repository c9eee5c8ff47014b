"""`lorakit generate --data`: rows in, the same rows with answers out; it goes on after a kill."""

import secrets
import time
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from lorakit.config import RunConfig
from lorakit.data import check_sources
from lorakit.data.sources import all_files, answering_notes
from lorakit.errors import (
    ConfigError,
    DataError,
    LorakitError,
    OutputError,
)
from lorakit.files.cache import Progress, no_progress
from lorakit.files.journal import Journal
from lorakit.run.answer_limit import most_tokens, with_answer_limit
from lorakit.run.recorded import with_recorded
from lorakit.run.session import Session
from lorakit.serving.answering import kept
from lorakit.serving.answering.asked import AskedRow, AskedRows, Survey, survey
from lorakit.serving.answering.opening import (
    AskedModel,
    begun_of,
    open_answerer,
    open_asked,
    rows_of,
)
from lorakit.serving.answering.output import OutputFile, Report
from lorakit.serving.answering.row_answer import Answerer, RowAnswer, RowDecoding
from lorakit.serving.answering.spec import AnswerSpec
from lorakit.serving.answering.writing import known_columns


@dataclass(frozen=True)
class AnsweredFile:
    """What became of a file's rows.

    Attributes:
        out: where they are.
        rows: how many.
        unfinished: how many answers reached the limit of tokens.
        first_unfinished: the place of the first of them, from 1; None where there is none.
        errors: how many rows have no answer (`bad_rows` "mark").
        resumed: how many rows were answered before this call.
        seconds: of this call.
    """

    out: Path
    rows: int
    unfinished: int
    first_unfinished: int | None
    errors: int
    resumed: int
    seconds: float


def run_answering(
    config: RunConfig,
    adapter: str | Path | None,
    spec: AnswerSpec,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    force: bool = False,
    progress: Progress = no_progress,
    report: Report = lambda _: None,
    held: tuple[Session, str] | None = None,
) -> AnsweredFile | None:
    """Answer every row of `config.data.data` and write all into one file.

    Args:
        config: model, rows and limits; what an adapter recorded counts where nothing was given.
        adapter: a folder or a name in the store, or None for the base.
        spec: where the answers go.
        temperature, top_p, top_k, seed: as of `lorakit generate`.
        force: use the adapter although it was trained on another base.
        progress: told of a download of the built-in model.
        report: told what is done.
        held: a session of a model that is loaded already, and what identifies its pairs.

    Returns:
        What became of the rows; None where a resumed file was finished already.

    Raises:
        InputError: something given cannot be used. Nothing was answered.
        LorakitError: the model failed at a row; the answers before it are kept.
    """
    began = time.perf_counter()
    if spec.choices and (temperature or top_p < 1 or top_k or seed is not None):
        raise ConfigError(
            "temperature, top_p, top_k and seed have no use with choices: the likeliest label is the answer"
        )
    out = _out(config, spec)
    place = kept.place_of(out)
    if _finished(out, place, spec):
        return None
    check_sources(config.data.data)
    for note in answering_notes(config.data.data):
        report({"kind": "note", "text": note})
    config = replace(config, data=replace(config.data, data=all_files(config.data.data)))
    config = with_answer_limit(with_recorded(config, adapter, packing=True), adapter)
    asked = (
        open_asked(config, adapter, progress)
        if held is None
        else AskedModel(held[0], None, held[1])
    )
    decoding = RowDecoding(most_tokens(config), temperature, top_p, top_k, seed or 0)
    rows = rows_of(config, asked, spec)
    output = OutputFile(config, spec)
    found = _survey(rows, output, spec, report)
    earlier = kept.begun(place)
    if seed is None and temperature > 0:
        decoding = replace(decoding, seed=earlier.seed if earlier else secrets.randbits(32))
    answerer = open_answerer(asked, rows, decoding, spec, found, force=force, report=report)
    with closing(answerer), kept.open_journal(place) as journal:
        begun = begun_of(asked, rows, decoding, spec, found, answerer)
        if earlier is None:
            journal.append(begun.line())
        else:
            _check_same(place, earlier, begun, report)
        resumed = sum(len(answers) for answers in kept.answers_in(place))
        report({"kind": "stage", "name": "answer", "total": found.rows, "done": resumed})
        _answer_all(rows, answerer, journal, resumed, spec, report)
        report({"kind": "stage", "name": "write", "total": found.rows, "done": 0})
        output.write(out, rows, found, place, report)
        journal.remove()
        made = output.counts
    return AnsweredFile(
        out, found.rows, *made, resumed=resumed, seconds=time.perf_counter() - began
    )


def _out(config: RunConfig, spec: AnswerSpec) -> Path:
    if not config.data.data:
        raise DataError("no rows: give --data")
    if spec.out is None:
        raise ConfigError("say where the answers go: --out answers.jsonl (or .csv, .parquet)")
    return Path(spec.out)


def _finished(out: Path, place: Path, spec: AnswerSpec) -> bool:
    """Whether there is nothing left to do.

    Raises:
        OutputError: something is there, and it was not asked to go on.
    """
    if place.exists() and not spec.resume:
        raise OutputError(
            f"{place} holds answers of an earlier run: go on with --resume, or remove it to begin again"
        )
    if out.exists() and not place.exists():
        if spec.resume:
            return True
        raise OutputError(f"{out} exists: give the answers another --out")
    return False


def _survey(rows: AskedRows, output: "OutputFile", spec: AnswerSpec, report: Report) -> Survey:
    report({"kind": "stage", "name": "check", "total": None, "done": 0})
    found = survey(rows, output.check, lambda done: report({"kind": "progress", "done": done}))
    output.settle()
    known_columns(spec, found.columns, str(rows.sources[0]))
    if found.bad and spec.bad_rows == "stop":
        raise DataError(
            f"{found.first_bad}; {found.bad:,} of {found.rows:,} rows cannot be answered: mend them, or "
            "leave them without an answer with --bad-rows mark"
        )
    if found.bad == found.rows:
        raise DataError(f"{found.first_bad}; none of {found.rows:,} rows can be answered")
    return found


def _check_same(place: Path, earlier: kept.Begun, now: kept.Begun, report: Report) -> None:
    """See that what was begun can be gone on with.

    Raises:
        OutputError: the answers would be others.
    """
    keys = {*earlier.depends, *now.depends}
    other = sorted(k for k in keys if earlier.depends.get(k) != now.depends.get(k))
    if other:
        raise OutputError(
            f"{place} was begun with other {' and '.join(other)}: give what it was begun with, or remove "
            "it to begin again"
        )
    keys = {*earlier.environment, *now.environment}
    other = sorted(k for k in keys if earlier.environment.get(k) != now.environment.get(k))
    if other:
        text = (
            f"the answers so far were made with other {', '.join(other)}: in rare cases, where two "
        )
        text += "tokens are nearly as likely, an undisturbed run would answer otherwise"
        report({"kind": "note", "text": text})


def _answer_all(
    rows: AskedRows,
    answerer: Answerer,
    journal: Journal,
    start: int,
    spec: AnswerSpec,
    report: Report,
) -> None:
    """Answer the rows from a place on, window by window, and keep each window's answers."""
    source, first = rows.asked(start), start
    while window := list(islice(source, spec.keep_every)):
        good = [row for row in window if row.error is None]

        def done(count: int, before: int = first) -> None:
            report({"kind": "progress", "done": before + count})

        made = iter(answerer.answers(good, first, done) if good else [])
        answers = [
            next(made) if row.error is None else RowAnswer(None, None, error=row.error)
            for row in window
        ]
        _stop_at_failures(window, answers, spec)
        kept.append(journal, first, answers)
        first += len(window)
        report({"kind": "progress", "done": first})


def _stop_at_failures(window: list[AskedRow], answers: list[RowAnswer], spec: AnswerSpec) -> None:
    if spec.bad_rows == "mark":
        return
    for row, answer in zip(window, answers, strict=True):
        if answer.error is not None:
            raise LorakitError(
                f"{row.row.origin}: {answer.error}; the answers before this window are kept: --resume "
                "goes on with them"
            )
