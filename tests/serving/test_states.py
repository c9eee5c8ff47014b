"""Models that no KV cache of ours fits: each sequence apart, with the model's own cache; and limits.

The oracle is transformers' own code with `load_adapter`, one request at a time, without a cache.
"""

import random
from dataclasses import replace

import pytest
import torch
from engines import SPEC, Alone, Driven, Watched, base, make_adapter

from lorakit.errors import ConfigError
from lorakit.execution.own_caches import SequencesApart, StateBytes, Way, tensor_bytes
from lorakit.serving.room import room_of_states
from lorakit.serving.spec import EngineSpec

RANKS = {"one": 2, "two": 3}  # one slot, and two
# How each is served; where a cache goes on wrongly (transformers 5.24), it is seen.
WAYS = {
    "mamba": Way.PROMPTS,
    "mamba2": Way.CONTINUED,
    "jamba": Way.PROMPTS,
    "bamba": Way.CONTINUED,
    "falcon_h1": Way.CONTINUED,
    "qwen3_5_text": Way.CONTINUED,
    "rwkv": Way.CONTINUED,
    "recurrent_gemma": Way.ROWS,
    "bloom": Way.CONTINUED,
    "mpt": Way.CONTINUED,
    "gpt_neo": Way.CONTINUED,
    "bart": Way.CONTINUED,
    "xglm": Way.CONTINUED,
    # Its rope is chosen by the longest row: what was cached before is turned by another one.
    "phi3+longrope": Way.ROWS,
    # It counts no place for a padding token, which its cached steps do.
    "roberta": Way.ROWS,
    "xlm-roberta-xl": Way.ROWS,
    # It chooses among keys of equal scores, by the length of the row.
    "doge": Way.ROWS,
    # Limits of 16 to 32 tokens in windows that the mask alone holds, and in positions.
    "mixtral": None,
    "ministral3": None,
}


@pytest.fixture(scope="module", params=WAYS)
def pair(request, tmp_path_factory):
    """An engine with two adapters, and the oracle."""
    family = request.param
    root = tmp_path_factory.mktemp(family)
    model = base(family)
    head = next(p for p, m in model.named_modules() if m is model.get_output_embeddings())
    targets = {"one": ("all-linear",), "two": ("all-linear", head)}
    folders = {
        key: make_adapter(model, root / key, rank, seed=rank, targets=targets[key])
        for key, rank in RANKS.items()
    }
    engine = Watched(family, replace(SPEC, slot_rank=2))
    engine.folders = folders
    if WAYS[family] is None:
        assert engine.forward.blocks.states is None
    else:
        assert isinstance(engine.forward.blocks, SequencesApart)
        assert engine.forward.blocks.kind is WAYS[family]
    return engine, Alone(family, folders)


def test_each_answer_equals_the_request_alone(pair):
    engine, alone = pair
    numbers = random.Random(3)
    asked = []
    # Two prompts longer than a step (24 tokens), one that goes on from another, two that are equal.
    for number, (key, length) in enumerate(
        [("one", 40), ("", 9), ("two", 31), ("one", 5), ("", 33), ("two", 1), ("one", 12)]
    ):
        ids = [numbers.randrange(5, 200) for _ in range(length)]
        asked.append((number, ids, key))
    asked += [(7, asked[0][1], "one"), (8, asked[0][1], "")]
    for number, ids, key in asked:
        engine.ask(number, ids, key, most=5)
        for _ in range(numbers.randrange(3)):
            engine.step()
    engine.settle()
    tokens, logits = alone.answer(asked[2][1], "two")
    engine.ask(9, asked[2][1] + tokens + [7, 8], "two", most=5)
    asked.append((9, asked[2][1] + tokens + [7, 8], "two"))
    engine.settle()
    for number, ids, key in asked:
        tokens, logits = alone.answer(ids, key)
        assert engine.answers[number, 0].ids == tokens, (number, key)
        assert (torch.stack(engine.logits[number, 0]) - logits).abs().max() <= 1e-3
    assert engine.cache.busy == 0
    # A state that goes on from all of its tokens is reused; the last token was never computed.
    whole = engine.forward.blocks.states is None or engine.forward.blocks.kind is Way.CONTINUED
    reused = len(asked[2][1]) + 4 if whole else 0
    assert engine.answers[9, 0].reused == reused


def test_the_adapters_change_answers(pair):
    _engine, alone = pair
    ids = list(range(20, 40))
    plain = alone.answer(ids, "")[1][0]
    for key in RANKS:
        assert (alone.answer(ids, key)[1][0] - plain).abs().max() > 0.01


def test_a_step_that_fails_leaves_no_token_twice_in_a_cache():
    engine, alone = Driven("mamba2"), Alone("mamba2", {})
    ids, blocks = list(range(30, 50)), engine.forward.blocks
    engine.ask("a", ids, most=5)
    engine.ask("b", ids[:9], most=5)
    for _ in range(3):
        engine.step()
    forward, calls = blocks._forward, []

    def fail_second(state, count):
        logits = forward(state, count)
        calls.append(state)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return logits

    blocks._forward = fail_second
    engine.settle()
    assert engine.answers["a", 0].ids == alone.answer(ids, "")[0]
    assert engine.answers["b", 0].ids == alone.answer(ids[:9], "")[0]


def test_what_is_counted_is_what_the_caches_hold():
    engine = Driven("bamba")
    room, states = engine.forward.room, engine.forward.blocks.states
    for number in range(12):
        engine.ask(number, list(range(20 + number, 60 + number)), most=8)
    while engine.step():
        assert states.bytes <= SPEC.cache_gb * 1e9
        assert len(states) <= engine.cache.blocks <= room.sequences
    engine.cache.forget("")
    engine.step()
    assert len(states) == 0


@pytest.mark.parametrize("state", [StateBytes(0, 100), StateBytes(40_000, 0), StateBytes(9000, 50)])
def test_sequences_never_need_more_than_the_cache(state):
    for gigabytes in (0.0002, 0.001, 0.1):
        room = room_of_states(EngineSpec(cache_gb=gigabytes, max_running=8), state, 1024, "whole")
        needed = room.sequences * state.fixed + room.positions * state.token
        assert needed <= gigabytes * 1e9
        assert room.positions >= 1024
        assert room.sequences <= 16
    with pytest.raises(ConfigError, match=r"give at least 0\.0"):
        room_of_states(EngineSpec(cache_gb=0.00003), state, 1024, "whole")


def test_bytes_of_nested_values_are_counted_once():
    class Layer:
        pass

    layer = Layer()
    layer.keys, layer.values = torch.zeros(3, 4), torch.zeros(5, dtype=torch.bfloat16)
    layer.again = [layer.keys, {"x": layer}]
    assert tensor_bytes({"cache": (layer, layer)}) == 48 + 10
