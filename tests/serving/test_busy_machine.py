"""An engine computes with the cores that other processes leave."""

import sys
import time

import torch
from engines import Driven

from lorakit.serving import engine as engines_module


def test_the_team_of_an_engine_follows_the_machine(monkeypatch):
    engine = Driven()
    free, used = [2], [2]
    monkeypatch.setattr(engine, "_threads", 2)
    monkeypatch.setattr(engines_module, "team", lambda threads: min(threads, free[-1]))

    def told(threads):
        # Engines that other tests have left may still be ending, each in a thread of its own.
        if sys._getframe(1).f_locals.get("self") is engine:
            used.append(threads)

    monkeypatch.setattr(torch, "set_num_threads", told)
    monkeypatch.setattr(torch, "get_num_threads", lambda: used[-1])

    def reach(threads):
        for _ in range(200):
            if used[-1] == threads:
                return
            engine.ask(len(used), [5, 6, 7], most=1)  # wakes it
            time.sleep(0.05)
        raise AssertionError(used)

    engine.start()
    try:
        for cores in (1, 2, 1):
            free.append(cores)
            reach(cores)
    finally:
        engine.stop()
    assert used == [2, 2, 1, 2, 1]
