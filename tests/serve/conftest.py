"""One server for the tests that only ask it something."""

import pytest
from servers import fill_store, saved_base, serving


@pytest.fixture(scope="session")
def house(tmp_path_factory):
    """A base's folder, a store, and a cache of fingerprints of their own."""
    root = tmp_path_factory.mktemp("serve")
    patch = pytest.MonkeyPatch()
    patch.setenv("LORAKIT_CACHE", str(root / "cache"))
    model = saved_base(root / "tiny-base")
    fill_store(root / "store", model, root / "scratch")
    yield root
    patch.undo()


@pytest.fixture(scope="session")
def running(house):
    with serving(house / "tiny-base", house / "store") as server:
        yield server
