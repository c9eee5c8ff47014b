"""A DataSpec and a tokenizer -> training rows, held-out rows, and notes: the entry to this room."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lorakit.data.cutting import cuts_prompts, shortened
from lorakit.data.given import Source
from lorakit.data.notes import (
    RowCounts,
    length_notes,
    repeat_notes,
    shape_note,
    split_note,
    template_notes,
    turn_notes,
)
from lorakit.data.reading import EncodedRows, encode_rows
from lorakit.data.readings import LOOKED_AT, refuse_two_readings
from lorakit.data.recognising import recognise
from lorakit.data.records import read_rows
from lorakit.data.shapes import Example, Shape
from lorakit.data.sources import by_split, measured, training_notes
from lorakit.data.spec import DataSpec
from lorakit.data.split import held_out
from lorakit.data.table import TokenTable
from lorakit.data.template import Template, Tokenizer, resolve_template
from lorakit.errors import ConfigError


@dataclass(frozen=True)
class Dataset:
    """The rows that a run is trained on, and the rows that it is measured on.

    eval_examples: the held-out rows, each with its prompt and its reference answer; `eval` holds a
    conversation as several sequences where its template asks for it. data_sha256: of the content of the rows used, in their order, whatever file they came from.
    train_hashes, eval_hashes: uint32 (S,), the `row_hash` of each sequence of `train` and of `eval`. notes:
    sentences for the user, one for each decision that was taken about the rows.
    """

    train: TokenTable
    eval: TokenTable
    eval_examples: tuple[Example, ...]
    template: Template
    shape: Shape
    data_sha256: str
    train_hashes: NDArray[np.uint32]
    eval_hashes: NDArray[np.uint32]
    train_counts: RowCounts
    eval_counts: RowCounts
    notes: tuple[str, ...]


def load_data(
    spec: DataSpec,
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    context_length: int | None = None,
    embeddings: int | None = None,
    template: Template | None = None,
) -> Dataset:
    """Read, recognise, encode and split the rows of `spec`.

    seed: of the held-out share. context_length: tokens the model can read, which is the limit
    where ``spec.max_length`` is None. embeddings: how many tokens the model has an embedding for;
    a row with any other is refused. template: a recorded one, in place of ``spec.template``.

    Raises:
        DataError: a file or row cannot be read, is too long, or has no supervised token.
        ConfigError: no data is given, or the options contradict the model.
    """
    if not spec.data:
        raise ConfigError("data is empty: name the file of rows to learn from")
    limit = _limit(spec, context_length)
    files, spec = training_notes(spec), by_split(spec)
    shape, first = _first(spec.data, spec)
    _check_cut(spec, shape)
    template = template or resolve_template(spec, tokenizer, shape=shape)
    notes = [*files, shape_note(shape)]
    notes += template_notes(template, shape, first, tokenizer, spec)

    examples = _examples(spec.data, shape, spec.max_rows)
    train = encode_rows(examples, tokenizer, template, limit, spec, seed, embeddings)
    if spec.max_rows is not None and train.row_counts.read == spec.max_rows:
        notes.append(f"Read the first {spec.max_rows:,} training rows (max_rows).")
    notes += turn_notes(train.row_counts, "training rows")
    notes += length_notes(train.row_counts, "training rows", spec.too_long, spec.cut)
    if spec.eval_data:
        eval_shape, _ = _first(spec.eval_data, spec)
        if eval_shape.description != shape.description:
            notes.append(shape_note(eval_shape, "held-out"))
        rows = list(_examples(spec.eval_data, eval_shape, spec.max_eval_rows))
        held = encode_rows(iter(rows), tokenizer, template, limit, spec, seed, embeddings)
        notes += turn_notes(held.row_counts, "held-out rows")
        notes += length_notes(held.row_counts, "held-out rows", spec.too_long, spec.cut)
        eval_examples: tuple[Example, ...] = tuple(rows[i] for i in np.unique(held.index))
    else:
        out = held_out(train.keys, spec.eval_share, spec.max_eval_rows)
        held, train = _take(train, np.flatnonzero(out)), _take(train, np.flatnonzero(~out))
        indices = set(held.index.tolist())
        again = _examples(spec.data, shape, max(indices, default=-1) + 1)
        eval_examples = tuple(e for i, e in enumerate(again) if i in indices)
        notes.append(split_note(len(train.table), len(held.table), spec, seed, train.row_counts))
    eval_examples = _as_read(eval_examples, tokenizer, template, limit, spec)
    notes += repeat_notes(train.table, held.table)
    return Dataset(
        train=train.table,
        eval=held.table,
        eval_examples=eval_examples,
        template=template,
        shape=shape,
        data_sha256=_hash(train, held),
        train_hashes=train.hashes,
        eval_hashes=held.hashes,
        train_counts=train.row_counts,
        eval_counts=held.row_counts,
        notes=tuple(notes),
    )


def load_rows(
    sources: Sequence[Source],
    spec: DataSpec,
    tokenizer: Tokenizer,
    template: Template,
    *,
    limit: int | None = None,
    context_length: int | None = None,
    embeddings: int | None = None,
    texts_alone: bool = False,
) -> tuple[TokenTable, tuple[Example, ...], RowCounts]:
    """Rows to measure on, without any split: tokens, examples, and counts.

    A conversation may be several rows of tokens; it is one example.

    limit: take the first N rows. texts_alone: rows of text are meant as texts, whatever stands beside
    them. Mapping, max_length and too_long are those of `spec`.

    Raises:
        DataError, ConfigError: as `load_data`.
    """
    sources = measured(sources)
    shape, _ = _first(sources, spec, texts_alone=texts_alone)
    _check_cut(spec, shape)
    rows = list(_examples(sources, shape, limit))
    encoded = encode_rows(
        iter(rows), tokenizer, template, _limit(spec, context_length), spec, 0, embeddings
    )
    counts = replace(encoded.row_counts, reading=shape_note(shape))
    used = tuple(rows[i] for i in np.unique(encoded.index))
    used = _as_read(used, tokenizer, template, _limit(spec, context_length), spec)
    return encoded.table, used, counts


def examples_at(spec: DataSpec, shape: Shape, origins: Collection[str]) -> dict[str, Example]:
    """The training rows with these origins, read again.

    Raises:
        DataError: a row cannot be read.
    """
    found: dict[str, Example] = {}
    for example in _examples(spec.data, shape, spec.max_rows):
        if example.origin in origins:
            found[example.origin] = example
            if len(found) == len(origins):
                break
    return found


def _check_cut(spec: DataSpec, shape: Shape) -> None:
    if shape.kind == "text" and cuts_prompts(spec):
        raise ConfigError(
            f"cut is {spec.cut!r}, and rows of text have no prompt: leave it out, which cuts their ends"
        )


def _as_read(
    examples: tuple[Example, ...],
    tokenizer: Tokenizer,
    template: Template,
    limit: int | None,
    spec: DataSpec,
) -> tuple[Example, ...]:
    """The examples with the prompts that their tokens have, where prompts are cut."""
    if not cuts_prompts(spec):
        return examples
    fitting = (shortened(each, tokenizer, template, limit, spec) for each in examples)
    return tuple(pair[0] for pair in fitting if pair is not None)


def _hash(train: EncodedRows, held: EncodedRows) -> str:
    return hashlib.sha256(train.digests.tobytes() + b"|" + held.digests.tobytes()).hexdigest()


def _limit(spec: DataSpec, context_length: int | None) -> int | None:
    if spec.max_length and context_length and spec.max_length > context_length:
        raise ConfigError(
            f"max_length is {spec.max_length:,}, but the model reads at most {context_length:,} "
            "tokens"
        )
    return spec.max_length or context_length


def _first(
    sources: Sequence[Source], spec: DataSpec, *, texts_alone: bool = False
) -> tuple[Shape, Example]:
    row = next(read_rows(sources))
    shape = recognise(row, spec)
    if shape.kind == "text" and shape.text is None and not texts_alone:
        for source in sources:
            refuse_two_readings(read_rows([source], min(LOOKED_AT, spec.max_rows or LOOKED_AT)))
    return shape, shape.example(row)


def _examples(sources: Sequence[Source], shape: Shape, limit: int | None) -> Iterator[Example]:
    return (shape.example(row) for row in read_rows(sources, limit))


def _take(encoded: EncodedRows, rows: NDArray[np.intp]) -> EncodedRows:
    return EncodedRows(
        encoded.table.take(rows),
        encoded.digests[rows],
        encoded.keys[rows],
        encoded.index[rows],
        encoded.hashes[rows],
        replace(encoded.row_counts, kept=len(rows)),
    )
