"""A server whose engine is vLLM's stand-in (vllm_stand_in/), and what the stand-in was told."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from servers import SPEC, Running, serving

from lorakit.serving.spec import RuntimeSpec

FOLDER = Path(__file__).with_name("vllm_stand_in")
RUNTIME = RuntimeSpec(engine="vllm", vllm=sys.executable, vllm_seconds=60)
# vLLM's slots are of one rank, and the store's widest adapter has 32.
VLLM_SPEC = replace(SPEC, slots=3)


def variables(record: Path, **settings: Any) -> dict[str, str]:
    """What makes this python's vLLM the stand-in."""
    path = os.pathsep.join(filter(None, (str(FOLDER), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "STAND_IN": json.dumps({"record": str(record), **settings})}


@dataclass
class Told:
    """The stand-in's record."""

    path: Path

    def of(self, kind: str) -> list[dict[str, Any]]:
        """What it was told by one path, or of one kind."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [one for line in lines if (one := json.loads(line))["kind"] == kind]

    def wait(self, kind: str, count: int, seconds: float = 10.0) -> list[dict[str, Any]]:
        """The same, once there are so many."""
        until = time.monotonic() + seconds
        while len(found := self.of(kind)) < count and time.monotonic() < until:
            time.sleep(0.02)
        assert len(found) >= count, (kind, found)
        return found


@contextlib.contextmanager
def vllm_serving(
    house: Path,
    record: Path,
    spec: Any = VLLM_SPEC,
    runtime: RuntimeSpec = RUNTIME,
    given: Any = (),
    store: Path | None = None,
    adapters: Any = (),
    http: Any = None,
    **settings: Any,
) -> Iterator[tuple[Running, Told]]:
    """A server before the stand-in."""
    made = serving(
        *(house / "tiny-base", store or house / "store", spec),
        adapters=adapters,
        runtime=runtime,
        given=given,
        **(http or {}),
    )
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # for its start alone
            for name, value in variables(record, **settings).items():
                patch.setenv(name, value)
            running = stack.enter_context(made)
        yield running, Told(record)


def ended(pid: int, seconds: float = 20.0) -> bool:
    """Whether a process ends within so long; one that nobody has waited for yet has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def rest(running, seconds=10.0):
    """Wait until no request is left."""
    until = time.monotonic() + seconds
    while running.engine.load[0] and time.monotonic() < until:
        time.sleep(0.01)
    assert running.engine.load[0] == 0
