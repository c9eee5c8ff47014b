"""`lorakit generate --data`: rows in, the same rows with answers out; it goes on after a kill."""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from lorakit.adapters import load_adapter, read_adapter
from lorakit.config import RunConfig
from lorakit.data import PromptForm, Row, check_sources
from lorakit.data.sources import all_files, answering_notes
from lorakit.errors import (
    AdapterError,
    BaseMismatchError,
    ConfigError,
    DataError,
    LorakitError,
    ModelError,
    OutputError,
)
from lorakit.files.cache import Progress, no_progress
from lorakit.files.journal import Journal
from lorakit.files.whole import write_file, write_pieces
from lorakit.run.machine import machine, versions
from lorakit.run.named import Found, find_adapter
from lorakit.run.recorded import with_recorded
from lorakit.run.session import Session, open_base, recorded_template
from lorakit.serving.answering import kept
from lorakit.serving.answering.answerers import (
    Answerer,
    BatchAnswerer,
    ChoiceAnswerer,
    Decoding,
    EngineAnswerer,
    RowAnswer,
)
from lorakit.serving.answering.asked import AskedRow, AskedRows, Survey, digest_row, survey
from lorakit.serving.answering.parquet import ParquetTable
from lorakit.serving.answering.spec import AnswerSpec
from lorakit.serving.answering.writing import TextWriter, known_columns, text_writer

Report = Callable[[Mapping[str, Any]], None]
"""Takes "stage" (name, total), "progress" (done) and "note" (text) events."""


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


@dataclass(frozen=True)
class Asked:
    """Everything that answers are made of, opened.

    Attributes:
        session: the base, or a model that the caller holds with its pairs.
        found: an adapter that is not attached yet, None where there is none or it is.
        held: what identifies the pairs of a model that the caller holds.
    """

    session: Session
    found: Found | None = None
    held: str | None = None


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
    out = _out(config, spec)
    place = kept.place_of(out)
    if _finished(out, place, spec):
        return None
    check_sources(config.data.data)
    for note in answering_notes(config.data.data):
        report({"kind": "note", "text": note})
    config = replace(config, data=replace(config.data, data=all_files(config.data.data)))
    config = with_recorded(config, adapter)
    asked = _open(config, adapter, progress) if held is None else Asked(held[0], None, held[1])
    decoding = Decoding(config.output.max_new_tokens, temperature, top_p, top_k, seed or 0)
    rows = _rows(config, asked, spec)
    output = _Output(config, spec)
    found = _survey(rows, output, spec, report)
    earlier = kept.begun(place)
    if seed is None and temperature > 0:
        decoding = replace(decoding, seed=earlier.seed if earlier else secrets.randbits(32))
    answerer = _answerer(asked, rows, decoding, spec, found, force=force, report=report)
    begun = _begun(asked, rows, decoding, spec, found, answerer)
    with kept.open_journal(place) as journal:
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


def _open(config: RunConfig, adapter: str | Path | None, progress: Progress) -> Asked:
    """The base without its adapter, and the template that the adapter was trained with."""
    found = None if adapter is None else find_adapter(adapter, config.output.store)
    template = None
    if found is not None:
        template = recorded_template(read_adapter(found.folder), config.data)
    session = open_base(config.model, config.data, progress=progress)
    return Asked(replace(session, template=template or session.template), found)


def _rows(config: RunConfig, asked: Asked, spec: AnswerSpec) -> AskedRows:
    session, most = asked.session, config.output.max_new_tokens
    if spec.choices:
        ids = session.tokenizer(list(spec.choices), add_special_tokens=False)["input_ids"]
        most = max(map(len, ids)) + _ENDS
    form = PromptForm.of(config.data)
    data = config.data
    return AskedRows(data.data, form, session, session.template, most, _lead(config), data.max_rows)


_ENDS = 8  # tokens that may stand around a label: white space, and the end of a turn


def _lead(config: RunConfig) -> str:
    """The white space that a mapping of completions begins with."""
    text = (config.data.completion or "").replace("\\n", "\n").replace("\\t", "\t")
    return text[: len(text) - len(text.lstrip())]


def _survey(rows: AskedRows, output: "_Output", spec: AnswerSpec, report: Report) -> Survey:
    report({"kind": "stage", "name": "check", "total": None, "done": 0})
    found = survey(
        rows, output.check, lambda done: report({"kind": "progress", "done": done})
    )
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


def _answerer(
    asked: Asked,
    rows: AskedRows,
    decoding: Decoding,
    spec: AnswerSpec,
    found: Survey,
    *,
    force: bool,
    report: Report,
) -> Answerer:
    """What answers: the engine where it can, else batches; labels in their own way."""
    session, adapter = asked.session, asked.found
    attached = asked.held is not None
    if not spec.choices and not attached:
        folder = None if adapter is None else adapter.folder
        rank = 1 if folder is None else max(read_adapter(folder).ranks.values())
        try:
            return EngineAnswerer(
                *(session, folder, session.template, decoding, found.longest),
                window=spec.keep_every,
                rank=rank,
                force=force,
            )
        except BaseMismatchError:
            raise
        except (ModelError, AdapterError) as error:
            report({"kind": "note", "text": f"answered in batches of like length, because {error}"})
    if adapter is not None:
        load_adapter(session.model, adapter.folder, identity=session.identity, force=force)
    if spec.choices:
        return ChoiceAnswerer(session, spec.choices, rows.lead)
    return BatchAnswerer(session, decoding)


def _begun(
    asked: Asked,
    rows: AskedRows,
    decoding: Decoding,
    spec: AnswerSpec,
    found: Survey,
    answerer: Answerer,
) -> kept.Begun:
    session = asked.session
    adapter = asked.held if asked.found is None else asked.found.content
    depends = {
        "rows": f"{found.rows} rows, {found.sha256}",
        "model": [session.identity.weights_sha256, session.identity.tokenizer_sha256],
        "adapter": adapter,
        "template": _sha256(session.template.to_dict()),
        "prompt": rows.form.prompt,
        "max_new_tokens": decoding.most,
        "sampling": [decoding.temperature, decoding.top_p, decoding.top_k],
        "choices": list(spec.choices),
        "bad_rows": spec.bad_rows,
        "keep_every": spec.keep_every,
        "dtype": str(session.model.dtype),
    }
    depends |= {"seed": decoding.seed} if decoding.temperature > 0 else {}
    environment = {**versions(), **machine(session.model.device), "way": answerer.way}
    return kept.Begun(json.loads(json.dumps(depends)), environment, decoding.seed)


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
        text = f"the answers so far were made with other {', '.join(other)}: in rare cases, where two "
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
    try:
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
    finally:
        answerer.close()


def _stop_at_failures(
    window: list[AskedRow], answers: list[RowAnswer], spec: AnswerSpec
) -> None:
    if spec.bad_rows == "mark":
        return
    for row, answer in zip(window, answers, strict=True):
        if answer.error is not None:
            raise LorakitError(
                f"{row.row.origin}: {answer.error}; the answers before this window are kept: --resume "
                "goes on with them"
            )


class _Output:
    """The file of answers: what each row must be like, and how it is written."""

    def __init__(self, config: RunConfig, spec: AnswerSpec) -> None:
        self._spec, data = spec, config.data
        self._text: TextWriter | None = None
        self._table: ParquetTable | None = None
        if spec.format == "parquet":
            self._table = ParquetTable(spec, data.data, data.max_rows)
        else:
            self._text = text_writer(spec)
        self.counts: tuple[int, int | None, int] = (0, None, 0)

    def check(self, row: Row) -> None:
        """See that a row can be written, and take its types into account.

        Raises:
            DataError: it cannot.
        """
        (self._table or self._text).check(row)  # type: ignore[union-attr]

    def settle(self) -> None:
        """All rows were checked."""
        if self._table is not None:
            self._table.settle()

    def write(
        self, out: Path, rows: AskedRows, found: Survey, place: Path, report: Report
    ) -> None:
        """Write the file from the rows, read once more, and the answers that were kept.

        Raises:
            DataError: the rows are not those that were answered.
            OutputError: the disk is full.
        """
        pairs = self._pairs(rows, found, place, report)
        if self._text is not None:
            pieces = self._text.pieces(found.columns, pairs)
            write_pieces(out, pieces, what="answers", overwrite=True)
            return
        table = self._table
        assert table is not None
        write_file(out, lambda part: table.write(part, pairs), what="answers", overwrite=True)

    def _pairs(
        self, rows: AskedRows, found: Survey, place: Path, report: Report
    ) -> Iterator[tuple[Row, RowAnswer]]:
        answers = (answer for window in kept.answers_in(place) for answer in window)
        digest, count = hashlib.sha256(), 0
        unfinished, first, errors = 0, None, 0
        for count, row in enumerate(rows.read(), 1):
            answer = next(answers, None)
            if answer is None:
                break
            digest_row(digest, row)
            unfinished += not answer.finished
            first = first or (count if not answer.finished else None)
            errors += answer.error is not None
            if count % 1024 == 0:
                report({"kind": "progress", "done": count})
            yield row, answer
        if count != found.rows or digest.hexdigest() != found.sha256:
            raise DataError(
                f"{rows.sources[0]}: the rows changed while they were being answered; what was answered is "
                f"kept in {place}"
            )
        report({"kind": "progress", "done": count})
        self.counts = (unfinished, first, errors)


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
