"""`lorakit adapters add`, hit at any write: the store is whole, and what it held is still there."""

from pathlib import Path

from harness import Command, check_faults

from lorakit.adapters.store import Store

ADD = ("adapters", "add", "adapter", "invoices", "--store", "store")


def test_an_adapter_is_added_whole_or_not_at_all(warm, trained, tmp_path, how):
    command = Command(
        ADD, trained, readable=readable, content=content, again=again, changes=("store", "cache")
    )
    check_faults(command, warm, tmp_path, how, most=10)


def again(folder: Path) -> list[tuple[str, ...]]:
    """What a killed process left in `staging` is `gc`'s to remove: others may be at work."""
    return [ADD, ("adapters", "gc", "--store", "store")]


def readable(folder: Path) -> None:
    """Every name's adapter has the bytes of its hashes, and the one from before is among them."""
    store = Store(folder / "store")
    for entry in store.list():
        store.checked(entry.name)
    store.checked("letters@1")


def content(folder: Path) -> list[tuple[str | None, int | None, str]]:
    return [(e.name, e.number, e.version.id) for e in Store(folder / "store").list()]
