"""What every room's tests share."""

from collections import defaultdict
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def nothing_remembered() -> Iterator[None]:
    """Tests change what a way computes, and the user's cache is no place for what was found then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAKIT_TRIALS", "again")
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products: handing them to several threads costs more than they do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def float32_by_default() -> Iterator[None]:
    """`dtype: auto` is another format on another processor; a test of bfloat16 asks for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lorakit.models.devices.cpu_multiplies_bf16", lambda: False)
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Seconds by room, so that whoever adds tests sees what they cost beside the others."""
    seconds, tests = defaultdict[str, float](float), defaultdict[str, set[str]](set)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                room = room_of(report.nodeid)
                seconds[room] += report.duration
                tests[room].add(report.nodeid)
    if len(seconds) < 2:
        return
    terminalreporter.section("seconds by room")
    for room in sorted(seconds, key=seconds.__getitem__, reverse=True):
        terminalreporter.write_line(f"{room:24}{len(tests[room]):6} tests{seconds[room]:9.1f} s")
    count, total = sum(map(len, tests.values())), sum(seconds.values())
    terminalreporter.write_line(f"{'total':24}{count:6} tests{total:9.1f} s")


def room_of(nodeid: str) -> str:
    """The folder below tests/, or the room of a doctest: 'tests/lora', 'src/lorakit/lora'."""
    folders = nodeid.split("::")[0].split("/")[:-1]
    return "/".join(folders[: 3 if folders[:1] == ["src"] else 2])
