"""Examples -> sequences of tokens within the limit, with what is known of their rows."""

import hashlib
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorakit.data.cutting import cuts_prompts, excess, shortened
from lorakit.data.encode import EncodedExample, encode_examples
from lorakit.data.notes import RowCounts
from lorakit.data.row_hash import row_hash
from lorakit.data.shapes import Example
from lorakit.data.spec import DataSpec
from lorakit.data.split import prompt_key
from lorakit.data.table import Encoded, TokenTable
from lorakit.data.template import Template, Tokenizer
from lorakit.errors import DataError

Shorter = Callable[[Example], EncodedExample | None]
"""An example -> its tokens with a shorter prompt; None where that is no help."""


@dataclass(frozen=True)
class EncodedRows:
    """S sequences as tokens, and 36 bytes more for each of them.

    digests: uint8 (S, 16), content hashes of their rows. keys: uint64 (S,), their `prompt_key`s.
    index: int64 (S,), how many rows were read before theirs. hashes: uint32 (S,), their `row_hash`es.
    """

    table: TokenTable
    digests: NDArray[np.uint8]
    keys: NDArray[np.uint64]
    index: NDArray[np.int64]
    hashes: NDArray[np.uint32]
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

    def shorter(example: Example) -> EncodedExample | None:
        fitting = shortened(example, tokenizer, template, limit, spec)
        return None if fitting is None else fitting[1]

    table = TokenTable.build(reading.kept(checked(), shorter if cuts_prompts(spec) else None))
    reading.refuse(len(table))
    index = np.frombuffer(reading.index, np.int64)
    return EncodedRows(
        table,
        np.frombuffer(reading.digests, np.uint8).reshape(-1, 16)[index],
        np.frombuffer(reading.keys, np.uint64)[index],
        index,
        np.frombuffer(reading.hashes, np.uint32)[index],
        reading.row_counts(len(table)),
    )


class _Reading:
    """What is known of the rows that have been read: hashes, and how many of each kind."""

    def __init__(self, limit: int | None, spec: DataSpec, seed: int) -> None:
        self.limit, self.spec, self.seed = limit, spec, seed
        self.digests, self.keys, self.index = bytearray(), array("Q"), array("q")
        self.hashes = array("I")
        self.counts: dict[str, Any] = dict.fromkeys(
            ("read", "too_long", "dropped", "truncated", "longest"), 0
        ) | dict.fromkeys(
            ("empty", "split", "sequences", "context", "cut_tokens", "cut_answers"), 0
        )
        self.parts = Counter[str]()
        # Examples that are being encoded, a chunk of them: those too long are encoded again.
        self.examples = deque[Example]()
        self.first_long: tuple[str, int] | None = None

    def hashed(self, examples: Iterator[Example]) -> Iterator[Example]:
        """The examples, each hashed on its way."""
        for example in examples:
            content = example.canonical()
            if example.weight != 1.0:
                content += repr(example.weight).encode()
            self.digests.extend(hashlib.blake2b(content, digest_size=16).digest())
            self.keys.append(prompt_key(example, self.seed))
            self.hashes.append(row_hash(example))
            if cuts_prompts(self.spec):
                self.examples.append(example)
            yield example

    def kept(self, rows: Iterator[EncodedExample], shorter: Shorter | None) -> Iterator[Encoded]:
        """The sequences that are used, those too long truncated or left out.

        shorter: gives an example with a shorter prompt, where prompts are cut.
        """
        counts = self.counts
        for i, row in enumerate(rows):
            if shorter is not None:
                row = self._with_shorter_prompt(row, self.examples.popleft(), shorter)
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

    def _with_shorter_prompt(
        self, row: EncodedExample, example: Example, shorter: Shorter
    ) -> EncodedExample:
        """The row as it is where it fits or nothing helps, else with a shorter prompt."""
        if not excess(row, self.limit) or (fitting := shorter(example)) is None:
            return row
        counts, lengths = self.counts, [len(sequence) for sequence in row.sequences]
        counts["longest"] = max(counts["longest"], *lengths)
        long = sum(length > (self.limit or length) for length in lengths)
        counts["too_long"] += long
        counts["truncated"] += long
        counts["cut_tokens"] += sum(lengths) - sum(map(len, fitting.sequences))
        return fitting

    def _fitting(self, row: Encoded) -> Encoded | None:
        """The sequence, cut to the limit; None where it is to be left out."""
        counts = self.counts
        counts["longest"] = max(counts["longest"], len(row))
        if self.limit is None or len(row) <= self.limit:
            return row
        counts["too_long"] += 1
        self.first_long = self.first_long or (row.origin, len(row))
        if self.spec.too_long == "drop" or self.spec.cut != "end":
            counts["dropped"] += 1
            return None
        cut = replace(row, ids=row.ids[: self.limit], weight=row.weight[: self.limit])
        if not cut.weight.any():
            counts["dropped"] += 1
            return None
        counts["truncated"] += 1
        counts["cut_tokens"] += len(row) - len(cut)
        counts["cut_answers"] += int(row.weight.sum()) - int(cut.weight.sum())
        return cut

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
                "truncate them (--cut prompt-middle keeps every answer whole)"
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
