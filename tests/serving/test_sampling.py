"""Sampling against its formula: frequencies, cuts, log-probabilities; text against one decoding."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from families import tokenizer
from lorakit.serving.keys import Bucket, Key, KeyRing
from lorakit.serving.sampling import Sampling, choose
from lorakit.serving.text import TextStream


def allowed(logits, wish):
    """The distribution that the formula gives, by sorting everything in float64."""
    p = torch.softmax(logits.double() / wish.temperature, dim=-1)
    order = p.argsort(descending=True)
    if wish.top_k:
        order = order[: wish.top_k]
    kept = p[order] / p[order].sum()
    if wish.top_p < 1:
        before = kept.cumsum(0) - kept
        order = order[before < wish.top_p]
    out = torch.zeros_like(p)
    out[order] = p[order]
    return out / out.sum()


WISHES = [
    Sampling(1.0),
    Sampling(0.7, top_k=5),
    Sampling(1.3, top_p=0.8),
    Sampling(1.0, top_p=0.6, top_k=7),
    Sampling(2.0, top_p=0.999),
]


@pytest.mark.parametrize("size", [12, 1000])
@pytest.mark.parametrize("wish", WISHES)
def test_tokens_come_as_often_as_the_formula_says(wish, size):
    logits = torch.randn(size, generator=torch.Generator().manual_seed(1)) * 2
    expected = allowed(logits, wish)
    draws, generator = 3000, random.Random(0)
    counts = torch.zeros(size, dtype=torch.float64)
    for token in choose(logits.expand(draws, -1), [wish] * draws, [generator] * draws):
        counts[token.id] += 1
    assert not counts[expected == 0].any()
    # Pearson's statistic over tokens that are expected at least five times, at six sigma.
    often = expected * draws >= 5
    chi = ((counts - expected * draws) ** 2 / (expected * draws))[often].sum().item()
    freedom = int(often.sum())
    assert chi <= freedom + 6 * math.sqrt(2 * freedom) + 6


def test_a_row_does_not_depend_on_the_others():
    logits = torch.randn(5, 400, generator=torch.Generator().manual_seed(2))
    wish = Sampling(1.1, top_p=0.9, seed=3)
    together = choose(logits, [wish] * 5, [wish.generator(i) for i in range(5)])
    alone = [choose(logits[i : i + 1], [wish], [wish.generator(i)])[0] for i in range(5)]
    assert together == alone


def test_greedy_log_probabilities_and_rows_that_are_not_finite():
    logits = torch.randn(4, 50)
    logits[1, 3], logits[2, 4], logits[3] = math.nan, math.inf, -math.inf
    wish = Sampling(0.0, logprobs=3)
    first, *rest = choose(logits, [wish] * 4, [random.Random()] * 4)
    assert rest == [None, None, None]
    expected = torch.log_softmax(logits[0], -1)
    assert first.id == int(logits[0].argmax())
    assert first.logprob == pytest.approx(expected.max().item())
    assert [i for i, _ in first.top] == expected.topk(3).indices.tolist()


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_pieces_add_up_to_the_text_before_the_first_stop(text, stop):
    made = tokenizer()
    ids = made(text, add_special_tokens=False)["input_ids"]
    whole = made.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    stream, got = TextStream(made, stop), ""
    for id in ids:
        piece = stream.feed(id)
        assert "\ufffd" not in piece or "\ufffd" in whole
        got += piece
        if stream.stopped is not None:
            break
    else:
        got += stream.finish()
    cuts = [whole.find(s) for s in stop if s in whole]
    # The stop that is complete first in the stream ends it, and that is not always the first to begin.
    if not cuts:
        assert got == whole
    else:
        assert got in {whole[: whole.find(s)] for s in stop if s in whole}
        assert stream.stopped in stop


def test_a_bucket_fills_by_the_minute_and_keeps_a_minutes_worth():
    bucket = Bucket(60, now=0.0)
    for _ in range(60):
        assert bucket.wait(0.0) == 0
        bucket.take(1)
    assert bucket.wait(0.0) == pytest.approx(1.0)
    assert bucket.wait(1.5) == 0
    bucket.take(1)
    assert bucket.wait(1000.0) == 0
    assert bucket.level == 60


def test_tokens_of_a_key_are_counted_when_they_are_known():
    ring = KeyRing([Key("one", "", tokens_per_minute=100)])
    (key,) = ring.keys
    assert ring.admit(key, 0.0) == 0
    ring.spend(key, 250)
    assert ring.admit(key, 0.0) > 60
    assert ring.admit(key, 120.0) == 0
