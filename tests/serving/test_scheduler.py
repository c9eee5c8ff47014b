"""The scheduler, which has no clock and does no I/O."""

import pytest

from lorakit.serving.cache import Cache
from lorakit.serving.pool import SlotPool
from lorakit.serving.scheduler import QueueFullError, Scheduler, Sequence
from lorakit.serving.spec import EngineSpec

SPEC = EngineSpec(slots=2, max_running=4, max_queue=6, step_tokens=16, patience=1.0)


def scheduler(spec=SPEC, cells=1024):
    return Scheduler(spec, Cache(cells, 256), SlotPool(spec.slots))


def sequence(length, key="", most=8, arrived=0.0):
    return Sequence(key, list(range(length)), most, arrived)


def run(made, plan):
    for work in plan.work:
        last = work.last
        made.advance(work)
        if last:
            work.sequence.tokens.append(7)


def test_a_long_prompt_comes_in_pieces_and_delays_nobody():
    made = scheduler()
    short, long = sequence(3), sequence(100)
    made.add([short])
    run(made, made.plan(0.0))
    made.add([long])
    pieces = []
    while not long.decoding or len(long.tokens) == 100:
        plan = made.plan(0.0)
        assert sum(work.count for work in plan.work) <= SPEC.step_tokens
        assert any(work.sequence is short and work.count == 1 for work in plan.work)
        pieces += [work.count for work in plan.work if work.sequence is long]
        run(made, plan)
    assert sum(pieces) == 100
    assert max(pieces) == 15


def test_all_or_none_of_a_request_is_taken():
    made = scheduler()
    made.add([sequence(3) for _ in range(4)])
    with pytest.raises(QueueFullError):
        made.add([sequence(3) for _ in range(3)])
    assert len(made.waiting) == 4


def test_an_adapter_that_is_not_there_is_wanted_and_overtaken():
    made = scheduler()
    first, second = sequence(3, "x"), sequence(3)
    made.add([first, second])
    plan = made.plan(0.0)
    assert plan.wanted == ("x",)
    assert plan.admitted == (second,)
    made.pool.place("x", 1)
    assert made.plan(0.0).admitted == (first,)
    assert made.pool.users == 1


def test_but_not_for_longer_than_patience():
    made = scheduler()
    blocked = sequence(3, "x")
    made.add([blocked, sequence(3)])
    made.plan(0.5)
    made.add([sequence(4, arrived=0.5)])
    assert made.plan(1.5).admitted == ()
    made.pool.place("x", 1)
    assert len(made.plan(1.5).admitted) == 2


def test_answers_to_one_prompt_wait_for_the_first_to_read_it():
    made = scheduler()
    first = sequence(40)
    second = Sequence("", first.prompt, 8, 0.0, leader=first)
    made.add([first, second])
    admitted = []
    for _ in range(5):
        plan = made.plan(0.0)
        admitted += plan.admitted
        run(made, plan)
    assert admitted == [first, second]
    assert second.reused == 39


def test_no_room_in_the_cache_is_waited_for_and_given_back():
    made = scheduler(cells=256)
    first, second = sequence(100, most=100), sequence(100, most=100)
    second.prompt = second.tokens = list(range(500, 600))
    made.add([first, second])
    assert made.plan(0.0).admitted == (first,)
    assert made.cache.busy == 256
    made.end(first)
    assert made.plan(0.0).admitted == (second,)
    made.end(second)
    made.end(second)
    assert made.cache.busy == 0
    assert not made.running
