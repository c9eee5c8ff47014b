"""`lorakit push` and `lorakit pull`: adapters of a folder or the store, and the hub."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from lorakit.adapters.hub import Pulled, Push, prepare_push, pull, push
from lorakit.adapters.store import Store
from lorakit.errors import ConfigError
from lorakit.extras import need
from lorakit.run.named import find_adapter


def run_push(
    adapter: str | Path,
    repository: str,
    *,
    store: str | Path | None,
    private: bool = True,
    force: bool = False,
    report: Callable[[Push], None],
) -> str:
    """Upload an adapter.

    Args:
        adapter: a folder, or a name in the store.
        repository: OWNER/NAME.
        store: the store's folder; None is the user's own.
        private: whether only its owner shall see it.
        force: put it over what the repository holds.
        report: told what is about to be uploaded, before it is.

    Returns:
        The address of the commit.

    Raises:
        InputError: see `lorakit.adapters.hub`.
    """
    need("hub", "`lorakit push`")
    found = find_adapter(adapter, store)
    prepared = prepare_push(found.folder, repository, private=private, force=force)
    report(prepared)
    return push(prepared, message=f"LoRA adapter {found.name}")


def run_pull(
    repository: str,
    *,
    revision: str | None,
    out: Path | None,
    name: str | None,
    store: str | Path | None,
) -> tuple[Pulled, str]:
    """Fetch an adapter into a folder, or into the store under a name.

    Returns:
        What was fetched, and where it is.

    Raises:
        ConfigError: not exactly one of `out` and `name`.
        InputError: see `lorakit.adapters.hub`.
    """
    need("hub", "`lorakit pull`")
    if (out is None) == (name is None):
        raise ConfigError("say where it goes: --out FOLDER, or --name NAME in the store")
    if out is not None:
        return pull(repository, out, revision=revision), str(out)
    assert name is not None
    with tempfile.TemporaryDirectory() as place:
        pulled = pull(repository, Path(place) / "adapter", revision=revision)
        entry = Store(store).add(pulled.folder, name).entry
    return pulled, f"{entry} in the store"
