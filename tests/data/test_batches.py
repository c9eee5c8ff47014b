"""Packing and the order of steps, against naive loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.data import Encoded, TokenTable, micro_batches, order, total_steps


def encoded(ids, weight, origin="f:1"):
    return Encoded(np.array(ids, np.int32), np.array(weight, np.uint8), origin)


rows_strategy = st.lists(
    st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=1, max_size=12),
    min_size=1,
    max_size=12,
).map(lambda rows: [encoded([i for i, _ in r], [w for _, w in r]) for r in rows])


def test_two_rows_laid_end_to_end_by_hand():
    rows = [encoded([5, 6, 7], [0, 1, 1]), encoded([8, 9], [1, 1])]
    (batch,) = micro_batches(rows, [0, 1], 100)
    assert batch.rows_S == (1, 0)  # the shorter first
    assert batch.lengths_S == (2, 3)
    assert batch.ids_T.tolist() == [8, 9, 5, 6, 7]
    assert batch.positions_T.tolist() == [0, 1, 0, 1, 2]
    # the 8 was marked, but begins a sequence: nothing predicts it
    assert batch.weight_T.tolist() == [0, 1, 0, 1, 1]
    assert batch.predict_L.tolist() == [0, 2, 3]
    assert batch.labels_L.tolist() == [9, 6, 7]
    assert (batch.token_count, batch.tokens) == (3, 5)
    assert batch.ids_T.dtype == batch.positions_T.dtype == torch.int64
    assert batch.weight_T.dtype == torch.float32


@given(rows=rows_strategy, budget=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_every_row_once_within_the_budget(rows, budget):
    batches = micro_batches(TokenTable.build(rows), range(len(rows)), budget)
    assert sorted(r for b in batches for r in b.rows_S) == list(range(len(rows)))
    pairs = []
    for batch in batches:
        assert batch.tokens <= budget or len(batch.rows_S) == 1
        assert batch.tokens == sum(batch.lengths_S)
        at = 0
        for row, length in zip(batch.rows_S, batch.lengths_S, strict=True):
            assert batch.ids_T[at : at + length].tolist() == rows[row].ids.tolist()
            assert batch.positions_T[at : at + length].tolist() == list(range(length))
            at += length
        pairs += zip(batch.ids_T[batch.predict_L].tolist(), batch.labels_L.tolist(), strict=True)
    naive = [
        (int(r.ids[t]), int(r.ids[t + 1]))
        for r in rows
        for t in range(len(r.ids) - 1)
        if r.weight[t + 1]
    ]
    assert sorted(pairs) == sorted(naive)
    assert sum(b.token_count for b in batches) == len(naive)


@given(rows=rows_strategy, budget=st.integers(1, 40), seed=st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_split_does_not_depend_on_the_order_of_the_rows(rows, budget, seed):
    shuffled = list(range(len(rows)))
    seed.shuffle(shuffled)
    a = micro_batches(rows, range(len(rows)), budget)
    b = micro_batches(rows, shuffled, budget)
    assert [x.rows_S for x in a] == [x.rows_S for x in b]


def test_moving_a_batch_keeps_what_it_predicts():
    (batch,) = micro_batches([encoded([1, 2, 3], [0, 0, 1])], [0], 8)
    moved = batch.to("cpu")
    assert moved.predict_L.tolist() == [1]
    assert moved.labels_L.tolist() == [3]
    assert moved.token_count == 1


def test_a_budget_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_tokens must be at least 1"):
        micro_batches([encoded([1, 2], [0, 1])], [0], 0)


@given(
    n=st.integers(1, 30),
    batch_size=st.integers(1, 9),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_order_covers_each_epoch_and_resumes_anywhere(n, batch_size, epochs, seed, data):
    steps = list(order(n, batch_size, epochs=epochs, seed=seed))
    per_epoch = math.ceil(n / batch_size)
    assert len(steps) == epochs * per_epoch == total_steps(n, batch_size, epochs=epochs)
    for e in range(epochs):
        epoch = steps[e * per_epoch : (e + 1) * per_epoch]
        assert sorted(r for step in epoch for r in step) == list(range(n))
        assert all(len(step) == batch_size for step in epoch[:-1])
    start = data.draw(st.integers(0, len(steps)))
    assert list(order(n, batch_size, epochs=epochs, seed=seed, start_step=start)) == steps[start:]
    assert list(order(n, batch_size, steps=len(steps), seed=seed)) == steps


def test_order_differs_between_epochs_and_seeds():
    steps = list(order(50, 50, epochs=2, seed=0))
    assert steps[0] != steps[1]
    assert steps[0] != next(order(50, 50, epochs=1, seed=1))


def test_the_first_row_of_a_permutation_is_spread_evenly():
    first = [next(order(4, 1, epochs=1, seed=s))[0] for s in range(2000)]
    counts = np.bincount(first, minlength=4)
    # 2000 draws of probability 1/4: 500 with a standard deviation of 19
    assert np.abs(counts - 500).max() < 100


@pytest.mark.parametrize(("epochs", "expected"), [(0.5, 2), (1, 3), (1.5, 5)])
def test_parts_of_an_epoch(epochs, expected):
    assert total_steps(9, 3, epochs=epochs) == expected
    assert len(list(order(9, 3, epochs=epochs, seed=0))) == expected


def test_epochs_and_steps_are_not_given_together():
    with pytest.raises(ValueError, match="either epochs or steps"):
        total_steps(3, 1, epochs=1, steps=1)
    with pytest.raises(ValueError, match="at least 1"):
        total_steps(0, 1, epochs=1)


@given(rows=rows_strategy)
@settings(max_examples=50, deadline=None)
def test_a_table_gives_back_its_rows(rows):
    rows = [Encoded(r.ids, r.weight, f"a:b{i % 2}.jsonl:{i + 1}") for i, r in enumerate(rows)]
    table = TokenTable.build(iter(rows))
    assert len(table) == len(rows)
    for i, row in enumerate(rows):
        assert table[i].ids.tolist() == row.ids.tolist()
        assert table[i].weight.tolist() == row.weight.tolist()
        assert table[i].origin == row.origin
    assert table[-1].origin == rows[-1].origin
    assert table.lengths.tolist() == [len(r) for r in rows]
    assert table.tokens == sum(map(len, rows))
    assert table.loss_tokens == sum(int(r.weight.sum()) for r in rows)
    back = table.take(reversed(range(len(rows))))
    assert [r.origin for r in back] == [r.origin for r in rows][::-1]
    assert [r.origin for r in table[1:]] == [r.origin for r in rows[1:]]


def test_an_empty_table():
    table = TokenTable.build([])
    assert (len(table), table.tokens, table.loss_tokens) == (0, 0, 0)
    with pytest.raises(IndexError, match="row 0 of a table of 0 rows"):
        table[0]
    assert TokenTable.build([encoded([1], [0], "no line")])[0].origin == "no line"
