"""Rows of an adapter that acts from its invocation on: each holds it before its last answer, or is named."""

import numpy as np
import pytest

from lorakit.data.table import Encoded, TokenTable
from lorakit.errors import DataError
from lorakit.lora import LoraSpec
from lorakit.run.invocation_rows import check_invocations, invocation_notes, silent_note, starts_in


def table(*rows):
    return TokenTable.build(
        Encoded(np.array(ids, np.int32), np.array(weight, np.uint8), f"rows.jsonl:{i + 1}")
        for i, (ids, weight) in enumerate(rows)
    )


RIGHT = ([1, 5, 6, 7, 8], [0, 0, 0, 1, 1])


def test_starts_are_those_of_a_search_row_by_row():
    draw = np.random.default_rng(0)
    for _ in range(200):
        lengths = draw.integers(1, 7, 4)
        rows = [draw.integers(0, 2, n).tolist() for n in lengths]
        wanted = draw.integers(0, 2, draw.integers(1, 4)).tolist()
        expected = []
        for row in rows:
            places = [
                i for i in range(len(row) - len(wanted) + 1) if row[i : i + len(wanted)] == wanted
            ]
            expected.append(places[-1] if places else -1)
        found = starts_in(table(*((row, [0] * len(row)) for row in rows)), wanted)
        assert found.tolist() == expected


def test_a_row_without_it_is_one_error_with_file_and_line():
    rows = table(RIGHT, ([1, 5, 7, 6], [0, 0, 1, 1]), ([6, 7], [0, 1]))
    with pytest.raises(DataError, match=r"^rows\.jsonl:2: the row does not hold .*2 of 3 rows"):
        check_invocations([rows], (5, 6))
    check_invocations([rows], ())


def test_an_answer_with_it_is_an_error():
    rows = table(RIGHT, ([1, 5, 6, 7, 5, 6, 7], [0, 0, 0, 1, 1, 1, 1]))
    with pytest.raises(DataError, match=r"^rows\.jsonl:2: the answer itself holds"):
        check_invocations([rows], (5, 6))


def test_earlier_answers_are_counted_and_said():
    turns = ([1, 5, 6, 7, 1, 5, 6, 8], [0, 0, 0, 1, 0, 0, 0, 1])
    spec = LoraSpec(alora=(5, 6))

    class Tokenizer:
        def decode(self, ids):
            return "call"

    said = " ".join(invocation_notes(table(turns), table(turns), spec, Tokenizer()))
    assert "'call' (5,6)" in said
    assert "62% of the tokens" in said
    assert "1 supervised tokens are answers of earlier turns" in said
    assert not invocation_notes(table(turns), table(turns), LoraSpec(), Tokenizer())


def test_measured_rows_without_it_are_counted():
    rows = table(RIGHT, ([1, 7], [0, 1]))

    class Tokenizer:
        def decode(self, ids):
            return "call"

    assert "1 of 2 rows do not hold 'call'" in silent_note(rows, (5, 6), Tokenizer())[0]
    assert silent_note(rows[:1], (5, 6), Tokenizer()) == []
