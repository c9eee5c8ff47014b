"""What several files of this room ask for, by name."""

import pytest

from lorakit.files import shards


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache that no other test has filled."""
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small_blocks(monkeypatch):
    """So small that every matrix here comes in several blocks of rows."""
    monkeypatch.setattr(shards, "BLOCK", 1000)
