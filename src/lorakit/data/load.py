"""A DataSpec and a tokenizer -> training rows, held-out rows, and notes: the entry to this room."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lorakit.data.encode import encode_examples
from lorakit.data.given import Source
from lorakit.data.notes import (
    RowCounts,
    folder_notes,
    length_notes,
    repeat_notes,
    shape_note,
    split_note,
    template_notes,
    turn_notes,
)
from lorakit.data.records import read_rows
from lorakit.data.shapes import Example, Shape, recognise
from lorakit.data.spec import DataSpec
from lorakit.data.split import held_out, prompt_key
from lorakit.data.table import Encoded, TokenTable
from lorakit.data.template import Template, Tokenizer, resolve_template
from lorakit.errors import ConfigError, DataError


@dataclass(frozen=True)
class EncodedRows:
    """S sequences as tokens, and 32 bytes more for each of them.

    digests: uint8 (S, 16), content hashes of their rows. keys: uint64 (S,), their `prompt_key`s.
    index: int64 (S,), how many rows were read before theirs.
    """

    table: TokenTable
    digests: NDArray[np.uint8]
    keys: NDArray[np.uint64]
    index: NDArray[np.int64]
    row_counts: RowCounts


@dataclass(frozen=True)
class Dataset:
    """The rows that a run is trained on, and the rows that it is measured on.

    eval_examples: the held-out rows, each with its prompt and its reference answer; `eval` holds a
    conversation as several sequences where its template asks for it. data_sha256: of the content of the rows used, in their order, whatever file they came from. notes: sentences
    for the user, one for each decision that was taken about the rows.
    """

    train: TokenTable
    eval: TokenTable
    eval_examples: tuple[Example, ...]
    template: Template
    shape: Shape
    data_sha256: str
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
    shape, first = _first(spec.data, spec)
    template = template or resolve_template(spec, tokenizer, shape=shape)
    notes = [*folder_notes((*spec.data, *spec.eval_data)), shape_note(shape)]
    notes += template_notes(template, shape, first, tokenizer, spec)

    examples = _examples(spec.data, shape, spec.max_rows)
    train = _encode(examples, tokenizer, template, limit, spec, seed, embeddings)
    if spec.max_rows is not None and train.row_counts.read == spec.max_rows:
        notes.append(f"Read the first {spec.max_rows:,} training rows (max_rows).")
    notes += turn_notes(train.row_counts, "training rows")
    notes += length_notes(train.row_counts, "training rows", spec.too_long)
    if spec.eval_data:
        eval_shape, _ = _first(spec.eval_data, spec)
        if eval_shape.description != shape.description:
            notes.append(shape_note(eval_shape, "held-out"))
        rows = list(_examples(spec.eval_data, eval_shape, spec.max_eval_rows))
        held = _encode(iter(rows), tokenizer, template, limit, spec, seed, embeddings)
        notes += turn_notes(held.row_counts, "held-out rows")
        notes += length_notes(held.row_counts, "held-out rows", spec.too_long)
        eval_examples = tuple(rows[i] for i in np.unique(held.index))
    else:
        out = held_out(train.keys, spec.eval_share, spec.max_eval_rows)
        held, train = _take(train, np.flatnonzero(out)), _take(train, np.flatnonzero(~out))
        indices = set(held.index.tolist())
        again = _examples(spec.data, shape, max(indices, default=-1) + 1)
        eval_examples = tuple(e for i, e in enumerate(again) if i in indices)
        notes.append(split_note(len(train.table), len(held.table), spec, seed))
    notes += repeat_notes(train.table, held.table)
    return Dataset(
        train=train.table,
        eval=held.table,
        eval_examples=eval_examples,
        template=template,
        shape=shape,
        data_sha256=_hash(train, held),
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
) -> tuple[TokenTable, tuple[Example, ...], RowCounts]:
    """Rows to measure on, without any split: tokens, examples, and counts.

    A conversation may be several rows of tokens; it is one example.

    limit: take the first N rows. Mapping, max_length and too_long are those of `spec`.

    Raises:
        DataError, ConfigError: as `load_data`.
    """
    shape, _ = _first(sources, spec)
    rows = list(_examples(sources, shape, limit))
    encoded = _encode(
        iter(rows), tokenizer, template, _limit(spec, context_length), spec, 0, embeddings
    )
    return encoded.table, tuple(rows[i] for i in np.unique(encoded.index)), encoded.row_counts


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


def _hash(train: EncodedRows, held: EncodedRows) -> str:
    return hashlib.sha256(train.digests.tobytes() + b"|" + held.digests.tobytes()).hexdigest()


def _limit(spec: DataSpec, context_length: int | None) -> int | None:
    if spec.max_length and context_length and spec.max_length > context_length:
        raise ConfigError(
            f"max_length is {spec.max_length:,}, but the model reads at most {context_length:,} "
            "tokens"
        )
    return spec.max_length or context_length


def _first(sources: Sequence[Source], spec: DataSpec) -> tuple[Shape, Example]:
    row = next(read_rows(sources))
    shape = recognise(row, spec)
    return shape, shape.example(row)


def _examples(sources: Sequence[Source], shape: Shape, limit: int | None) -> Iterator[Example]:
    return (shape.example(row) for row in read_rows(sources, limit))


def _encode(
    examples: Iterator[Example],
    tokenizer: Tokenizer,
    template: Template,
    limit: int | None,
    spec: DataSpec,
    seed: int,
    embeddings: int | None,
) -> EncodedRows:
    """Encode the rows as they are read; of an example only its hash and its prompt's key remain."""
    digests, keys, index = bytearray(), array("Q"), array("q")
    counts = dict.fromkeys(
        ("read", "too_long", "dropped", "truncated", "longest", "empty", "split", "sequences"), 0
    )
    context, parts = 0, Counter[str]()
    first_long: list[tuple[str, int]] = []

    def hashed() -> Iterator[Example]:
        for example in examples:
            digests.extend(hashlib.blake2b(example.canonical(), digest_size=16).digest())
            keys.append(prompt_key(example, seed))
            yield example

    def encoded() -> Iterator[Encoded]:
        nonlocal context
        rows = encode_examples(hashed(), tokenizer, template, drop=spec.drop)
        for i, example in enumerate(rows):
            counts["read"] += 1
            context += bool(example.context)
            parts.update(example.dropped)
            counts["empty"] += not example.sequences
            if len(example.sequences) > 1:
                counts["split"] += 1
                counts["sequences"] += len(example.sequences)
            for row in example.sequences:
                _check_embedded(row, tokenizer, embeddings)
                counts["longest"] = max(counts["longest"], len(row))
                if limit is not None and len(row) > limit:
                    counts["too_long"] += 1
                    first_long.append((row.origin, len(row)))
                    del first_long[1:]
                    row = Encoded(row.ids[:limit], row.weight[:limit], row.origin)
                    if spec.too_long == "drop" or not row.weight.any():
                        counts["dropped"] += 1
                        continue
                    counts["truncated"] += 1
                index.append(i)
                yield row

    table = TokenTable.build(encoded())
    if counts["too_long"] and spec.too_long == "error":
        origin, length = first_long[0]
        raise DataError(
            f"{origin}: the row is {length:,} tokens long and the limit is {limit:,} (max_length, or "
            f"what the model can read); {counts['too_long']:,} of {counts['read']:,} rows are "
            f"longer, the longest has {counts['longest']:,}. Give a larger --max-length, or "
            "--too-long drop to leave them out, or --too-long cut to truncate them"
        )
    if counts["read"] and counts["empty"] == counts["read"]:
        raise DataError(
            f"all {counts['read']:,} rows were left out, because nothing is left of their answers "
            f"(--drop {','.join(spec.drop)})"
        )
    if not len(table):
        raise DataError(
            f"all {counts['read']:,} rows are longer than {limit:,} tokens and were dropped; the "
            f"longest has {counts['longest']:,}: give a larger --max-length"
        )
    rows = np.frombuffer(index, np.int64)
    return EncodedRows(
        table,
        np.frombuffer(digests, np.uint8).reshape(-1, 16)[rows],
        np.frombuffer(keys, np.uint64)[rows],
        rows,
        RowCounts(
            kept=len(table),
            limit=limit,
            context=context,
            dropped_parts=tuple(sorted(parts.items())),
            **counts,
        ),
    )


def _check_embedded(row: Encoded, tokenizer: Tokenizer, embeddings: int | None) -> None:
    """Refuse a token that the tokenizer knows and the model has no embedding for."""
    if embeddings is None or not len(row) or (last := int(row.ids.max())) < embeddings:
        return
    raise DataError(
        f"{row.origin}: the tokenizer makes a token of {tokenizer.decode([last])!r} (id {last}), but "
        f"the model has embeddings for {embeddings:,} tokens alone, so the tokenizer is not this "
        "model's, or had tokens added without the model: take the text out of the row, or use the "
        "tokenizer that came with the model"
    )


def _take(encoded: EncodedRows, rows: NDArray[np.intp]) -> EncodedRows:
    return EncodedRows(
        encoded.table.take(rows),
        encoded.digests[rows],
        encoded.keys[rows],
        encoded.index[rows],
        replace(encoded.row_counts, kept=len(rows)),
    )
