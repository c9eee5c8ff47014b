"""Cells and slots: never two owners, nothing lost, against plain sets."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.serving.cache import Buddies, Cache, common_prefix, size_for
from lorakit.serving.pool import SlotPool


@given(st.lists(st.tuples(st.booleans(), st.integers(4, 8)), max_size=80))
def test_pieces_never_overlap_and_all_come_back(asked):
    buddies, owned = Buddies(1024, 256), {}
    for take, power in asked:
        if take:
            size = 1 << power
            start = buddies.take(size)
            if start is None:
                # No aligned stretch of that size is free.
                busy = {c // size for s, n in owned.items() for c in range(s, s + n)}
                assert len(busy) == 1024 // size
                continue
            assert start % size == 0
            cells = set(range(start, start + size))
            assert not any(cells & set(range(s, s + n)) for s, n in owned.items())
            owned[start] = size
        elif owned:
            start = sorted(owned)[power % len(owned)]
            buddies.give(start, owned.pop(start))
        assert buddies.free == 1024 - sum(owned.values())
    for start, size in owned.items():
        buddies.give(start, size)
    assert [buddies.take(256) for _ in range(5)] == [0, 256, 512, 768, None]


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=30))
def test_common_beginnings(one, other):
    expected = 0
    while expected < min(len(one), len(other)) and one[expected] == other[expected]:
        expected += 1
    assert common_prefix(one, other) == expected


prompts = st.tuples(st.integers(0, 2), st.integers(1, 60), st.sampled_from(["", "a", "b"]))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(prompts, st.integers(1, 60), st.booleans()), max_size=40))
def test_what_is_reused_is_what_was_computed_by_the_same_adapter(asked):
    """Positions hold (adapter, token, what stood before it); an allocation must find exactly its own."""
    cache, held, running = Cache(1024, 256), {}, []
    for (group, length, key), most, end in asked:
        prompt = [group] * 20 + list(range(100, 100 + length))
        allocation = cache.allocate(key, prompt, most)
        if allocation is None:
            assert sum(row.size for row, _ in running) + size_for(len(prompt) + most) > 256
        else:
            row = allocation.block
            assert all(
                row.start + row.size <= r.start or r.start + r.size <= row.start for r, _ in running
            )
            if allocation.copy_from is not None:
                for i in range(allocation.reused):
                    held[row.start + i] = held[allocation.copy_from + i]
            assert allocation.reused < len(prompt)
            for i in range(allocation.reused):
                assert held[row.start + i] == (key, tuple(prompt[: i + 1]))
            for i in range(allocation.reused, len(prompt)):
                held[row.start + i] = (key, tuple(prompt[: i + 1]))
            row.ids[:] = prompt
            running.append((row, key))
        if end and running:
            row, _ = running.pop(0)
            cache.release(row, keep=True)
    for row, _ in running:
        cache.release(row, keep=True)
    assert cache.busy == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([1, 1, 2, 4])), max_size=60))
def test_an_adapter_in_use_keeps_its_slots_and_the_least_recent_goes(asked):
    pool, used = SlotPool(8), []
    for number, width in asked:
        key = f"{number}/{width}"
        resident = pool.acquire(key)
        if resident is None:
            if pool.place(key, width) is None:
                assert used
                pool.release(used.pop(0))
                continue
            resident = pool.acquire(key)
        used.append(resident)
        assert resident.slot % width == 0
        taken = [s for r in set(used) for s in range(r.slot, r.slot + r.width)]
        assert len(taken) == len(set(taken))
        assert max(taken) < 8
        assert all(r.key in pool.resident for r in used)
        if len(used) > 2:
            pool.release(used.pop(0))


def test_of_idle_adapters_the_least_recently_used_goes():
    pool = SlotPool(3)
    for key in "abc":
        pool.place(key, 1)
    pool.release(pool.acquire("a"))
    pool.place("d", 1)
    assert set(pool.resident) == {"a", "c", "d"}
