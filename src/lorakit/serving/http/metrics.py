"""What Prometheus reads, and what the page shows of it.

Only names that were resolved become labels: what a client makes up does not fill the memory.
"""

import time
from collections import deque
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from lorakit.serving.answers import Observer

_SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_WINDOW = 10.0


class Metrics(Observer):
    """The figures of one engine, in a registry of its own.

    Args:
        way: how its steps are computed, in words.
    """

    def __init__(self, way: str) -> None:
        self.registry = CollectorRegistry()
        Info("lorakit_steps", "How steps are computed", registry=self.registry).info({"way": way})

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"lorakit_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"lorakit_{name}", text, registry=self.registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(
                f"lorakit_{name}", text, labels, buckets=_SHORT, registry=self.registry
            )

        self.answered = counter("completion_tokens", "Tokens written", "model")
        self.read = counter("prompt_tokens", "Tokens of prompts", "model")
        self.reused = counter("prompt_tokens_reused", "of which in the cache already", "model")
        self.requests = counter("requests", "Requests by status of the response", "status")
        self.running = gauge("running_sequences", "Answers being computed")
        self.waiting = gauge("waiting_sequences", "Answers waiting for their turn")
        self.positions = gauge(
            "cache_tokens_in_use", "Tokens of the cache that running answers own"
        )
        self.rate = gauge("tokens_per_second", f"Tokens written a second, last {_WINDOW:.0f} s")
        self.steps = histogram("step_seconds", "Time of a step")
        self.first = histogram("time_to_first_token_seconds", "From request to token", "model")
        self.between = histogram("time_between_tokens_seconds", "Between two tokens", "model")
        self.loads = histogram("adapter_load_seconds", "Reading, checking and staging an adapter")
        self.installs = histogram("adapter_install_seconds", "Copying it into its slots")
        # Tokens of each tenth of a second in which there were any, the latest last.
        self._recent: deque[tuple[int, int]] = deque(maxlen=round(10 * _WINDOW) + 1)
        # Looking a label up takes longer than counting.
        self._series: dict[str, tuple[Any, ...]] = {}
        self.now = {"running": 0, "waiting": 0}

    def step(self, seconds: float, tokens: int) -> None:
        """A step is over."""
        self.steps.observe(seconds)

    def level(self, running: int, waiting: int, positions: int) -> None:
        """What is computed and what waits."""
        self.running.set(running)
        self.waiting.set(waiting)
        self.positions.set(positions)
        self.now = {"running": running, "waiting": waiting}

    def token(self, name: str, since: float, *, first: bool) -> None:
        """A token of an answer."""
        series = self._series.get(name)
        if series is None:
            made = (self.answered, self.first, self.between)
            series = self._series[name] = tuple(each.labels(name) for each in made)
        series[0].inc()
        series[1 if first else 2].observe(since)
        tenth, before = int(10 * time.monotonic()), 0
        if self._recent and self._recent[-1][0] == tenth:
            before = self._recent.pop()[1]
        self._recent.append((tenth, before + 1))

    def prompt(self, name: str, tokens: int, reused: int) -> None:
        """A prompt has been read."""
        self.read.labels(name).inc(tokens)
        self.reused.labels(name).inc(reused)

    def loaded(self, reading: float, installing: float) -> None:
        """An adapter was read."""
        self.loads.observe(reading)
        self.installs.observe(installing)

    def per_second(self) -> float:
        """Tokens written a second, over the last few seconds."""
        now = time.monotonic()
        recent = [each for each in tuple(self._recent) if each[0] >= 10 * (now - _WINDOW)]
        if not recent:
            return 0.0
        return sum(count for _, count in recent) / max(1.0, now - recent[0][0] / 10)

    def text(self) -> bytes:
        """In Prometheus's format."""
        self.rate.set(self.per_second())
        return generate_latest(self.registry)
