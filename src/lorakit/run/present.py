"""Is what a command names here? Asked before torch is imported, so that a typing error costs no seconds.

The use cases ask again where they use it: this is only earlier. What is asked is imported where it is
asked: `--help` needs none of it.
"""

from collections.abc import Iterable
from pathlib import Path

from lorakit.config import RunConfig


def require_present(config: RunConfig, *adapters: str | Path | None) -> None:
    """Refuse rows, a model or adapters that are not here.

    Args:
        config: its rows, its model where one was given, and the adapter that it continues.
        adapters: what the command was given as adapters, without weights; None for none.

    Raises:
        InputError: one of them is missing, or another thing than it has to be.
    """
    from lorakit.data.files import check_sources
    from lorakit.models.sources import check_named

    check_sources((*config.data.data, *config.data.eval_data))
    if "model" in config.given:
        check_named(config.model)
    require_adapters((config.start.parent, *adapters), config.output.store)


def require_adapters(
    adapters: Iterable[str | Path | None], store: str | Path | None = None
) -> None:
    """Refuse adapters that are not here.

    Raises:
        AdapterError: a folder is missing, or holds no adapter.
        StoreError: the store has no such name.
    """
    from lorakit.adapters.folder import adapter_folder
    from lorakit.run.named import find_adapter

    for asked in adapters:
        if asked is not None:
            adapter_folder(find_adapter(asked, store, hashed=False).folder)


def require_run_folder(config: RunConfig) -> None:
    """Refuse a run folder that is in use, and a name that the store would not take.

    Raises:
        OutputError, StoreError: nothing could be written there.
    """
    from lorakit.adapters.store import Store
    from lorakit.adapters.store.references import check_name
    from lorakit.run.folder import check_folder

    check_folder(Path(config.output.out), resume=config.output.resume)
    if config.output.save_as is not None:
        check_name(config.output.save_as)
        Store(config.output.store).index.exists()
