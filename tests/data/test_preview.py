"""What `check` shows, and the choice of held-out rows, against plain counting."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.data import Encoded, Example, TokenTable, resolve_template
from lorakit.data.encode import encode
from lorakit.data.preview import fragments, lengths, repeated_rows, shared_rows
from lorakit.data.spec import DataSpec
from lorakit.data.split import held_out, prompt_key


def table(*rows):
    return TokenTable.build(
        Encoded(np.array(ids, np.int32), np.array([0] + [1] * (len(ids) - 1), np.uint8), f"f:{i}")
        for i, ids in enumerate(rows, 1)
    )


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_lengths_count_every_row_once(sizes):
    found = lengths(table(*([7] * n for n in sizes)))
    assert (found.rows, found.tokens) == (len(sizes), sum(sizes))
    assert (found.shortest, found.longest) == (min(sizes), max(sizes))
    assert found.loss_tokens == sum(sizes) - len(sizes)
    assert found.loss_share == pytest.approx(1 - len(sizes) / sum(sizes))
    for a, b, count in zip(found.edges, found.edges[1:], found.counts, strict=False):
        assert count == sum(a <= n < b for n in sizes)
    assert sum(found.counts) == len(sizes)
    assert len(found.counts) <= 13
    middle = found.percentiles[50]
    assert sum(n <= middle for n in sizes) >= len(sizes) / 2
    assert sum(n >= middle for n in sizes) >= len(sizes) / 2


def test_lengths_of_nothing():
    assert lengths(table()).loss_share == 0.0


def test_fragments_are_the_rows_text_and_where_it_bears_loss(chatml):
    text = "é😀 b"
    template = resolve_template(DataSpec(), chatml)
    found = fragments(encode(Example("f:1", prompt="é", completion=text), chatml, template), chatml)
    assert "".join(f.text for f in found if f.supervised) == text + "<|im_end|>"
    assert "".join(f.text for f in found if not f.supervised).endswith("assistant\n")
    assert [f.text for f in found if f.supervised] == ["é", "😀", " ", "b", "<|im_end|>"]


def test_rows_in_both_and_rows_that_repeat():
    train, held = table([1, 2], [3, 4], [1, 2], [5], [1, 2]), table([9], [3, 4], [1, 2])
    assert shared_rows(train, held) == [(1, 1), (2, 0)]
    assert repeated_rows(train) == [(0, 2, 4)]
    assert shared_rows(train, table()) == shared_rows(table(), held) == []
    assert repeated_rows(table()) == []
    # in the order in which they begin, whatever their hashes
    assert repeated_rows(table(*([i] for i in (1, 2, 3, 1, 3, 2, 2)))) == [
        (0, 3),
        (1, 5, 6),
        (2, 4),
    ]


@given(
    keys=st.lists(st.integers(0, 6), max_size=40),
    share=st.floats(0, 0.9),
    most=st.none() | st.integers(1, 10),
)
@settings(max_examples=200, deadline=None)
def test_held_out_rows_keep_their_groups_and_their_bound(keys, share, most):
    chosen = held_out(keys, share, most)
    assert chosen.shape == (len(keys),)
    groups = Counter(keys)
    held = {k for k, c in zip(keys, chosen, strict=True) if c}
    assert not held & {k for k, c in zip(keys, chosen, strict=True) if not c}
    if share == 0 or len(groups) < 2:
        assert not chosen.any()
        return
    assert 0 < chosen.sum() < len(keys)
    wanted = min(max(1, round(share * len(keys))), most or len(keys))
    # a group that alone is larger than what is wanted is taken only where no smaller one is
    assert chosen.sum() <= wanted or (len(held) == 1 and chosen.sum() == min(groups.values()))


def test_distinct_keys_give_the_exact_share():
    assert held_out(range(100, 200), 0.13).sum() == 13
    assert held_out(range(100, 200), 0.13, most=4).sum() == 4


def test_a_prompts_key_depends_on_the_seed_and_not_on_the_answer():
    a, b = (Example(f"f:{i}", prompt="q", completion=c) for i, c in enumerate("ab"))
    assert prompt_key(a, 0) == prompt_key(b, 0) != prompt_key(a, 1)
    talk = [{"role": "user", "content": "q"}]
    one, two = (Example("f:1", messages=(*talk, {"role": "assistant", "content": c})) for c in "ab")
    assert prompt_key(one, 0) == prompt_key(two, 0)
