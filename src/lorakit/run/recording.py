"""Scores that stay with an adapter: in the store's index, or beside the files of a folder."""

from pathlib import Path

from lorakit.adapters.measurements import Measurement, add_measurement
from lorakit.adapters.store import store_of
from lorakit.errors import ConfigError
from lorakit.run.named import find_adapter


def check_recording(adapter: str | Path | None) -> None:
    """Refuse to record what cannot be, before anything is measured.

    Raises:
        ConfigError: there is no adapter to keep it with.
    """
    if adapter is None:
        raise ConfigError(
            "--record keeps scores with an adapter: give --adapter, a folder or a name in the store"
        )


def record_measurement(adapter: str | Path, store: str | Path | None, measured: Measurement) -> str:
    """Keep a measurement with an adapter, whose content stays as it is.

    Returns:
        Where: a version in the store, or the folder.

    Raises:
        OutputError: it cannot be written.
    """
    found = find_adapter(adapter, store)
    if (opened := store_of(found.folder)) is not None:
        version = opened.record(found.folder.resolve().name, measured)
        called = opened.called(version)
        return found.name if found.name in called else ", ".join(called) or f"@{version.short}"
    add_measurement(found.folder, found.content, measured)
    return str(found.folder)
