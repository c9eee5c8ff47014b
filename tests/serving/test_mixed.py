"""Done-when 2: each answer of a mixed batch equals the answer of its request alone.

The oracle of "alone" is not the engine: it is the model's own code with `load_adapter`, one request
at a time, without a cache.
"""

import pytest
import torch
from engines import SPEC, Alone, Driven, Watched, base, make_adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit.execution.lean import LeanBlocks
from lorakit.execution.stepping import OwnBlocks

RANKS = {"r4": 4, "r8": 8, "r32": 32, "h4": 4, "s4": 4, "d4": 4, "d12": 12}
# One adapts the output head beside the blocks, and one the head alone.
TARGETS = {
    "r8": ("all-linear", "lm_head"),
    "h4": ("lm_head",),
    "d4": ("all-linear", "lm_head"),
}
VARIANTS = {"s4": {"rslora": True}, "d4": {"dora": True}, "d12": {"dora": True, "rslora": True}}
MOST = 5
TOLERANCE = 2e-4
"""Of logits in float32 that are about 7: 24 bits, and some hundred additions in another order."""


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma2", "mistral", "gpt2"])
def pair(request, tmp_path_factory):
    """An engine with adapters of several ranks, with and without the head, and the oracle."""
    family = request.param
    root = tmp_path_factory.mktemp(family)
    folders = {
        key: make_adapter(
            *(base(family), root / key, rank, rank),
            targets=TARGETS.get(key, ("all-linear",)),
            **VARIANTS.get(key, {}),
        )
        for key, rank in RANKS.items()
    }
    engine = Watched(family)
    engine.folders = folders
    assert isinstance(
        engine.forward.blocks, LeanBlocks if family in ("llama", "qwen3", "mistral") else OwnBlocks
    )
    return engine, Alone(family, folders)


request = st.tuples(
    st.sampled_from(["", *RANKS]),  # whose
    st.integers(1, 40),  # tokens
    st.integers(0, 3),  # begins like others of this number
    st.integers(0, 4),  # steps before it comes
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(asked=st.lists(request, min_size=2, max_size=16))
def test_each_answer_equals_the_request_alone(pair, asked):
    engine, alone = pair
    engine.answers.clear()
    engine.logits.clear()
    # The base's own request is always among them: elsewhere it gets another row's adapter.
    asked = [*asked, ("", 9, 0, 1)]
    prompts = []
    for i, (key, length, group, later) in enumerate(asked):
        g = torch.Generator().manual_seed(group)
        shared = torch.randint(5, 200, (24,), generator=g).tolist()
        g = torch.Generator().manual_seed(100 * length + group)
        own = torch.randint(5, 200, (length,), generator=g).tolist()
        ids = (shared + own)[: length + 8] if length > 16 else own
        prompts.append(ids)
        engine.ask(i, ids, key, most=MOST)
        for _ in range(later):
            engine.step()
    engine.settle()
    assert engine.pool.users == 0
    assert engine.cache.busy == 0
    for i, (key, *_) in enumerate(asked):
        ids, logits = alone.answer(prompts[i], key)
        same = until_a_tie(logits)
        got = torch.stack(engine.logits[i, 0])[: same + 1]
        assert engine.answers[i, 0].ids[:same] == ids[:same], (i, key)
        assert (got - logits[: same + 1]).abs().max() <= TOLERANCE


def until_a_tie(logits):
    """Tokens before the first whose two likeliest lie so near that rounding chooses; its own logits
    depend on no choice yet."""
    high = logits.topk(2, dim=-1).values
    near = (high[:, 0] - high[:, 1] < 2 * TOLERANCE).nonzero()
    return int(near[0]) if len(near) else len(logits)


def test_adapters_of_the_fixture_do_change_answers(pair):
    _engine, alone = pair
    ids = list(range(20, 40))
    plain = alone.answer(ids, "")[1][0]
    for key in RANKS:
        assert (alone.answer(ids, key)[1][0] - plain).abs().max() > 0.1


def test_more_adapters_than_slots_and_every_answer_is_right(tmp_path):
    """Six slots of rank 8 hold six adapters; twelve take turns, in both orders."""
    folders = {f"a{i}": make_adapter(base("llama"), tmp_path / f"a{i}", 8, i) for i in range(12)}
    engine, alone = Driven("llama"), Alone("llama", folders)
    engine.folders = folders
    ids = list(range(30, 50))
    order = [*folders, *reversed(folders)]
    for i, key in enumerate(order):
        engine.ask(i, ids, key, most=MOST)
    engine.settle()
    for i, key in enumerate(order):
        assert engine.answers[i, 0].ids == alone.answer(ids, key)[0]
    assert engine.pool.users == 0
    assert len(engine.pool.resident) == SPEC.slots


def test_bfloat16_is_near_float32():
    engine = Driven("llama", dtype=torch.bfloat16)
    assert isinstance(engine.forward.blocks, LeanBlocks)
    assert engine.alone(list(range(20, 40))).finish == "length"
