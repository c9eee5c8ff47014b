"""Examples -> sequences of tokens within the limit, with what is known of their rows."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorakit.data.encode import EncodedExample, encode_examples
from lorakit.data.notes import RowCounts
from lorakit.data.shapes import Example
from lorakit.data.spec import DataSpec
from lorakit.data.split import prompt_key
from lorakit.data.table import Encoded, TokenTable
from lorakit.data.template import Template, Tokenizer
from lorakit.errors import DataError


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


def encode_rows(
    examples: Iterator[Example],
    tokenizer: Tokenizer,
    template: Template,
    limit: int | None,
    spec: DataSpec,
    seed: int,
    embeddings: int | None,
) -> EncodedRows:
    """Encode the rows as they are read; of an example only its hash and its prompt's key remain.

    limit: most tokens of a sequence. seed: of the keys. embeddings: how many tokens the model has
    an embedding for.

    Raises:
        DataError: a row cannot be encoded, is too long, or none is left.
    """
    reading = _Reading(limit, spec, seed)
    rows = encode_examples(reading.hashed(examples), tokenizer, template, drop=spec.drop)

    def checked() -> Iterator[EncodedExample]:
        for row in rows:
            for sequence in row.sequences:
                _check_embedded(sequence, tokenizer, embeddings)
            yield row

    table = TokenTable.build(reading.kept(checked()))
    reading.refuse(len(table))
    index = np.frombuffer(reading.index, np.int64)
    return EncodedRows(
        table,
        np.frombuffer(reading.digests, np.uint8).reshape(-1, 16)[index],
        np.frombuffer(reading.keys, np.uint64)[index],
        index,
        reading.row_counts(len(table)),
    )


class _Reading:
    """What is known of the rows that have been read: hashes, and how many of each kind."""

    def __init__(self, limit: int | None, spec: DataSpec, seed: int) -> None:
        self.limit, self.spec, self.seed = limit, spec, seed
        self.digests, self.keys, self.index = bytearray(), array("Q"), array("q")
        self.counts = dict.fromkeys(
            ("read", "too_long", "dropped", "truncated", "longest"), 0
        ) | dict.fromkeys(("empty", "split", "sequences", "context"), 0)
        self.parts = Counter[str]()
        self.first_long: tuple[str, int] | None = None

    def hashed(self, examples: Iterator[Example]) -> Iterator[Example]:
        """The examples, each hashed on its way."""
        for example in examples:
            self.digests.extend(hashlib.blake2b(example.canonical(), digest_size=16).digest())
            self.keys.append(prompt_key(example, self.seed))
            yield example

    def kept(self, rows: Iterator[EncodedExample]) -> Iterator[Encoded]:
        """The sequences that are used, those too long truncated or left out."""
        counts = self.counts
        for i, row in enumerate(rows):
            counts["read"] += 1
            counts["context"] += bool(row.context)
            counts["empty"] += not row.sequences
            self.parts.update(row.dropped)
            if len(row.sequences) > 1:
                counts["split"] += 1
                counts["sequences"] += len(row.sequences)
            for sequence in row.sequences:
                if (fitting := self._fitting(sequence)) is not None:
                    self.index.append(i)
                    yield fitting

    def _fitting(self, row: Encoded) -> Encoded | None:
        """The sequence, cut to the limit; None where it is to be left out."""
        counts = self.counts
        counts["longest"] = max(counts["longest"], len(row))
        if self.limit is None or len(row) <= self.limit:
            return row
        counts["too_long"] += 1
        self.first_long = self.first_long or (row.origin, len(row))
        row = Encoded(row.ids[: self.limit], row.weight[: self.limit], row.origin)
        if self.spec.too_long == "drop" or not row.weight.any():
            counts["dropped"] += 1
            return None
        counts["truncated"] += 1
        return row

    def refuse(self, used: int) -> None:
        """Raise where rows are too long for the settings, or none is left."""
        counts = self.counts
        if self.first_long and self.spec.too_long == "error":
            origin, length = self.first_long
            raise DataError(
                f"{origin}: the row is {length:,} tokens long and the limit is {self.limit:,} "
                f"(max_length, or what the model can read); {counts['too_long']:,} of "
                f"{counts['read']:,} rows are longer, the longest has {counts['longest']:,}. Give a "
                "larger --max-length, or --too-long drop to leave them out, or --too-long cut to "
                "truncate them"
            )
        if counts["read"] and counts["empty"] == counts["read"]:
            raise DataError(
                f"all {counts['read']:,} rows were left out, because nothing is left of their "
                f"answers (--drop {','.join(self.spec.drop)})"
            )
        if not used:
            raise DataError(
                f"all {counts['read']:,} rows are longer than {self.limit:,} tokens and were "
                f"dropped; the longest has {counts['longest']:,}: give a larger --max-length"
            )

    def row_counts(self, used: int) -> RowCounts:
        """The counts, of which `used` sequences are left."""
        return RowCounts(
            kept=used,
            limit=self.limit,
            dropped_parts=tuple(sorted(self.parts.items())),
            **self.counts,
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
