"""New rows are taken more often than those that are rehearsed: by counts that are done by hand."""

from collections import Counter

import numpy as np
import pytest

import lorakit
from lorakit.data import Example, load_data
from lorakit.data.given import as_source
from lorakit.data.rehearsal import Rehearsal
from lorakit.data.row_hash import row_hash


def marked(*new: int, rows: int) -> np.ndarray:
    found = np.zeros(rows, dtype=np.bool_)
    found[list(new)] = True
    return found


def test_half_of_every_step_is_new_where_the_weight_makes_both_kinds_equal():
    # 2 new rows at 3 times against 6 known ones: 6 of 12 slots.
    of = Rehearsal(marked(1, 5, rows=8), 3.0).order(4, seed=0)
    for step in range(9):
        assert [row in (1, 5) for row in of(step)].count(True) == 2
    taken = Counter(row for step in range(6) for row in of(step))  # 24 slots: 12 new, 12 known
    assert taken == {1: 6, 5: 6, 0: 2, 2: 2, 3: 2, 4: 2, 6: 2, 7: 2}


@pytest.mark.parametrize(
    ("weight", "new_in_steps"),
    [
        (1.0, [1, 0, 1, 0, 1, 1]),  # 1/5 of 3: ν(3j) = round(.6 j) = 0, 1, 1, 2, 2, 3, 4
        (4.0, [2, 1, 2, 1, 2, 1]),  # 4/8 of 3: ν(3j) = 0, 2, 3, 5, 6, 8, 9, halves upwards
        (0.5, [0, 1, 0, 0, 1, 0]),  # 1/9 of 3: ν(3j) = 0, 0, 1, 1, 1, 2, 2
    ],
)
def test_the_share_of_every_step_is_kept_to_a_row(weight, new_in_steps):
    of = Rehearsal(marked(3, rows=5), weight).order(3, seed=7)
    counted = [of(step).count(3) for step in range(6)]
    assert counted == new_in_steps
    assert all(len(of(step)) == 3 for step in range(6))


def test_known_rows_come_once_each_before_any_comes_again():
    of = Rehearsal(marked(0, rows=7), 3.0).order(3, seed=1)  # a round has 9 slots
    known = [row for step in range(6) for row in of(step) if row]
    assert sorted(known[:6]) == sorted(known[6:]) == [1, 2, 3, 4, 5, 6]
    assert known[:6] != known[6:]


def test_a_step_depends_on_nothing_but_its_number():
    whole = Rehearsal(marked(2, 3, 9, rows=20), 2.5)
    straight = whole.order(6, seed=3)
    once = [straight(step) for step in range(12)]
    again = whole.order(6, seed=3)
    assert [again(step) for step in (11, 4, 0, 7)] == [once[step] for step in (11, 4, 0, 7)]
    other = whole.order(6, seed=4)
    assert [other(step) for step in range(12)] != once


def test_fewer_rows_than_a_step_takes():
    of = Rehearsal(marked(0, rows=3), 2.0).order(16, seed=0)
    assert [len(of(step)) for step in range(4)] == [3, 3, 3, 3]
    assert Counter(row for step in range(4) for row in of(step))[0] == 6


@pytest.mark.parametrize("new", [(), (0, 1, 2)])
def test_there_is_no_rehearsal_of_one_kind(new):
    with pytest.raises(ValueError, match="needs new rows, known rows"):
        Rehearsal(marked(*new, rows=3), 2.0)


class TestRowHash:
    def test_the_same_words_are_the_same_row(self):
        row = Example("a:1", "say  lamp\n", "pmal")
        assert row_hash(row) == row_hash(Example("b:7", "say\tlamp", "pmal "))

    @pytest.mark.parametrize(
        "other",
        [
            Example("a:1", "say lamp", "lamp"),
            Example("a:1", "say", "lamp pmal"),
            Example("a:1", text="say lamp pmal"),
            Example("a:1", "Say lamp", "pmal"),
        ],
    )
    def test_other_content_is_another_row(self, other):
        assert row_hash(Example("a:1", "say lamp", "pmal")) != row_hash(other)

    def test_keys_of_a_message_in_another_order_are_the_same_row(self):
        def turn(*pairs):
            return Example("a:1", messages=(dict(pairs), {"role": "assistant", "content": "x"}))

        one = turn(("role", "user"), ("content", "hello  there"))
        assert row_hash(one) == row_hash(turn(("content", "hello there"), ("role", "user")))


def test_the_hashes_of_a_dataset_are_those_of_its_training_rows(plain):
    rows = [{"prompt": f"say {i}", "completion": str(i)} for i in range(8)]
    spec = lorakit.DataSpec(data=(as_source(rows),), eval_share=0.25, template="raw")
    read = load_data(spec, plain)
    left = [Example("", row["prompt"], row["completion"]) for row in rows]
    known = {row_hash(example) for example in left}
    assert len(read.train_hashes) == len(read.train) == 6
    assert set(read.train_hashes.tolist()) < known
