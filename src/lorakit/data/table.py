"""The tokens of one row, and of all rows in flat arrays."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from lorakit.data.given import origin, parts


@dataclass(frozen=True)
class Encoded:
    """One row as tokens.

    ids: int32 (T,), the token ids.
    weight: uint8 (T,), the loss mask: 1 where the token is supervised, that is, where the model is
        trained to predict it from the tokens before it. weight[0] is always 0: nothing comes
        before the first token.
    origin: "file:line" of the row.
    factor: of its loss in training.
    """

    ids: NDArray[np.int32]
    weight: NDArray[np.uint8]
    origin: str
    factor: float = 1.0

    def __len__(self) -> int:
        return len(self.ids)


class TokenTable(Sequence[Encoded]):
    """The tokens of S rows, one after the other in flat arrays: 5 bytes a token, 28 a row.

    ids_N: int32 (N,), weight_N: uint8 (N,) over all N tokens; offsets: int64 (S + 1,), row i is
    ``ids_N[offsets[i] : offsets[i + 1]]``; factor_S: float32 (S,) of their losses. ``table[i]`` is an `Encoded` whose arrays are views.
    """

    def __init__(
        self,
        ids_N: NDArray[np.int32],
        weight_N: NDArray[np.uint8],
        offsets: NDArray[np.int64],
        files: tuple[str, ...],
        file_S: NDArray[np.int32],
        line_S: NDArray[np.int64],
        part_S: NDArray[np.int32],
        factor_S: NDArray[np.float32],
    ) -> None:
        self.ids_N, self.weight_N, self.offsets = ids_N, weight_N, offsets
        self.factor_S = factor_S
        self._files, self._file_S, self._line_S, self._part_S = files, file_S, line_S, part_S

    @classmethod
    def build(cls, rows: Iterable[Encoded]) -> "TokenTable":
        """Take rows one by one, so that only the flat arrays are ever held."""
        ids, offsets, file_of, line_of = array("i"), array("q", [0]), array("i"), array("q")
        weight, part_of, factors = bytearray(), array("i"), array("f")
        files: dict[str, int] = {}
        for row in rows:
            ids.frombytes(np.ascontiguousarray(row.ids, dtype=np.int32).tobytes())
            weight += np.ascontiguousarray(row.weight, dtype=np.uint8).tobytes()
            offsets.append(len(ids))
            file, line, part = parts(row.origin)
            file_of.append(files.setdefault(file, len(files)))
            line_of.append(line)
            part_of.append(part)
            factors.append(row.factor)
        return cls(
            np.frombuffer(ids, np.int32),
            np.frombuffer(weight, np.uint8),
            np.frombuffer(offsets, np.int64),
            tuple(files),
            np.frombuffer(file_of, np.int32),
            np.frombuffer(line_of, np.int64),
            np.frombuffer(part_of, np.int32),
            np.frombuffer(factors, np.float32),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> "TokenTable": ...
    def __getitem__(self, index: int | slice) -> "Encoded | TokenTable":
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        i = index + len(self) if index < 0 else index
        if not 0 <= i < len(self):
            raise IndexError(f"row {index} of a table of {len(self)} rows")
        span = slice(self.offsets[i], self.offsets[i + 1])
        return Encoded(
            self.ids_N[span], self.weight_N[span], self.origin(i), float(self.factor_S[i])
        )

    def origin(self, i: int) -> str:
        """Where row i came from: "file:line"."""
        file, line = self._files[self._file_S[i]], int(self._line_S[i])
        return origin(file, line, int(self._part_S[i])) if line else file

    def take(self, rows: Iterable[int]) -> "TokenTable":
        """A new table of these rows, in this order."""
        return TokenTable.build(self[int(i)] for i in rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, int64 (S,)."""
        return np.diff(self.offsets)

    @property
    def tokens(self) -> int:
        """The number of tokens of all rows."""
        return len(self.ids_N)

    @property
    def loss_tokens(self) -> int:
        """The number of supervised tokens of all rows."""
        return int(self.weight_N.sum(dtype=np.int64))


def longest_answer(table: TokenTable) -> int:
    """Tokens of the longest run of supervised tokens within a row, its end token included; 0 for none.

    A row of plain text is supervised as a whole, and is one such run.
    """
    weight_N = np.append(table.weight_N, np.uint8(0))
    # A run ends where the mask does, and before each row: the first token of a row has weight 0.
    edges = np.flatnonzero(np.diff(np.concatenate([[0], weight_N]) != 0))
    return int((edges[1::2] - edges[::2]).max(initial=0))
