"""Adapters that act from a position on, beside others: each answer is the answer alone, on a shared cache.

The oracle is the model's own code with `load_adapter`, one request at a time, without a cache.
"""

import pytest
import torch
from engines import SPEC, Alone, Driven, Watched, base, make_adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_mixed import MOST, TOLERANCE, until_a_tie

from lorakit.adapters.pairs import read_stored
from lorakit.data import Template
from lorakit.errors import AdapterError
from lorakit.lora.invocation import invocation_start
from lorakit.serving.cache import Cache
from lorakit.serving.catalog import Model

# Of three tokens, so that a random model does not write one.
INVOCATIONS = {"a4": (201, 202, 203), "a8": (203, 204, 201), "b4": (201, 202, 203)}
RANKS = {"r4": 4, "a4": 4, "a8": 8, "b4": 4}


def folders_of(family, root):
    return {
        key: make_adapter(*(base(family), root / key, rank, seed), alora=INVOCATIONS.get(key, ()))
        for seed, (key, rank) in enumerate(RANKS.items())
    }


def ask(engine, tag, ids, key, **more):
    """As the server does: by what the catalog's model makes of a prompt."""
    acts = Model(key, key, Template("raw"), invocation=INVOCATIONS.get(key, ())).on(ids)
    engine.ask(tag, ids, acts.key, unadapted=acts.unadapted, **more)


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2"])
def pair(request, tmp_path_factory):
    folders = folders_of(request.param, tmp_path_factory.mktemp(request.param))
    engine = Watched(request.param)
    engine.folders = folders
    return engine, Alone(request.param, folders)


asked = st.tuples(
    st.sampled_from(["", *RANKS]),  # whose
    st.integers(0, 60),  # tokens before an invocation
    st.sampled_from(["a4", "a8"]),  # which one
    st.integers(0, 12),  # tokens after it
    st.integers(0, 2),  # begins like others of this number
    st.integers(0, 4),  # steps before it comes
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(requests=st.lists(asked, min_size=2, max_size=12))
def test_each_answer_equals_the_request_alone(pair, requests):
    engine, alone = pair
    engine.answers.clear()
    engine.logits.clear()
    requests = [*requests, ("", 50, "a4", 3, 0, 1), ("a4", 50, "a4", 3, 0, 1)]
    prompts = []
    for i, (key, before, invocation, after, group, later) in enumerate(requests):
        g = torch.Generator().manual_seed(group)
        shared = torch.randint(5, 200, (80,), generator=g).tolist()
        ids = [*shared[:before], *INVOCATIONS[invocation], *shared[-after - 1 :]]
        prompts.append(ids)
        ask(engine, i, ids, key, most=MOST)
        for _ in range(later):
            engine.step()
    engine.settle()
    assert engine.pool.users == 0
    assert engine.cache.busy == 0
    for i, (key, *_) in enumerate(requests):
        ids, logits = alone.answer(prompts[i], key)
        same = until_a_tie(logits)
        got = torch.stack(engine.logits[i, 0])[: same + 1]
        assert engine.answers[i, 0].ids[:same] == ids[:same], (i, key)
        assert (got - logits[: same + 1]).abs().max() <= TOLERANCE


def test_the_base_and_all_activated_adapters_share_what_stands_before(pair):
    engine, alone = pair
    for key in ("", *RANKS):
        engine.cache.forget(key)
    shared = list(range(20, 120))
    prompt = [*shared, *INVOCATIONS["a4"], 9, 8]
    reused = {}
    # The base first, then each on what the one before left: also the base on an adapter's.
    for key in ("", "a4", "b4", "r4", "a4", ""):
        ask(engine, key, prompt, key, most=MOST)
        engine.settle()
        answer = engine.answers.pop((key, 0))
        assert answer.ids == alone.answer(prompt, key)[0], key
        reused.setdefault(key, []).append(answer.reused)
    assert reused[""] == [0, 100] or reused[""] == [0, len(prompt) - 1]
    assert reused["a4"][0] == reused["b4"][0] == 100
    assert reused["r4"] == [0]  # plain LoRA's keys and values are its own
    assert reused["a4"][1] >= 100


def test_several_that_come_at_once_wait_for_the_one_that_reads(pair):
    engine, alone = pair
    for key in ("", *RANKS):
        engine.cache.forget(key)
    prompt = [*range(20, 120), *INVOCATIONS["a4"], 9]
    for key in ("a4", "b4"):
        ask(engine, key, prompt, key, most=MOST)
    engine.settle()
    answers = {key: engine.answers.pop((key, 0)) for key in ("a4", "b4")}
    assert sorted(answer.reused for answer in answers.values()) == [0, 100]
    for key, answer in answers.items():
        assert answer.ids == alone.answer(prompt, key)[0]


def test_a_prompt_without_the_invocation_is_the_bases():
    model = Model("a", "key", Template("raw"), load=lambda: None, invocation=(5, 6))
    assert model.on([5, 7, 6]).key == ""
    assert (
        model.on([1, 5, 6, 5, 6, 2]).unadapted == invocation_start([1, 5, 6, 5, 6, 2], (5, 6)) == 3
    )
    assert Model("a", "key", Template("raw")).on([5, 6]).unadapted == 0


def test_a_model_that_begins_anew_at_every_step_takes_none(tmp_path):
    engine = Driven("llama", SPEC)
    folder = make_adapter(base("llama"), tmp_path / "a", 4, 1, alora=(5, 6))
    engine.forward.bank.stage(read_stored(folder))
    engine.forward.bank.goes_on = False
    with pytest.raises(AdapterError, match="computes a sequence anew at every step"):
        engine.forward.bank.stage(read_stored(folder))


owners = st.tuples(
    st.sampled_from(["", "plain", "x", "y"]),
    st.integers(0, 2),
    st.integers(1, 60),
    st.integers(0, 60),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(owners, st.integers(1, 60), st.booleans()), max_size=40))
def test_what_is_reused_is_what_would_be_computed(requests):
    """Positions hold (who computed it, what stood before it): an allocation must find its own."""
    cache, held, running = Cache(1024, 256), {}, []
    for (key, group, length, start), most, end in requests:
        prompt = [group] * 20 + list(range(100, 100 + length))
        alone = 0 if key == "plain" else min(start, len(prompt) - 1)
        allocation = cache.allocate(key, prompt, most, alone)
        if allocation is not None:
            row = allocation.block

            def value(i, key=key, prompt=prompt, alone=alone):
                # What a token's keys and values depend on: who computed it and every one before.
                owner = "" if not key or i < alone else (key, alone)
                return owner, tuple(prompt[: i + 1])

            if allocation.copy_from is not None:
                for i in range(allocation.reused):
                    held[row.start + i] = held[allocation.copy_from + i]
            for i in range(allocation.reused):
                assert held[row.start + i] == value(i)
            for i in range(allocation.reused, len(prompt)):
                held[row.start + i] = value(i)
            row.ids[:] = prompt
            running.append(row)
        if end and running:
            cache.release(running.pop(0), keep=True)
    for row in running:
        cache.release(row, keep=True)
    assert cache.busy == 0
    for key in ("", "plain", "x", "y"):
        cache.forget(key)
    assert cache.blocks == 0
