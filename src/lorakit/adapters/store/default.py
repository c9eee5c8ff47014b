"""Where the user's own store is, and how the help of commands says it; imports nothing heavy."""

import os
from pathlib import Path

import platformdirs

STORE_HELP = (
    "Folder of the store of named adapters. Default: the environment variable LORAKIT_STORE, else "
    "lorakit/store in the user's data folder."
)


def default_path() -> Path:
    """The folder of the user's store: LORAKIT_STORE, or `store` in the user's data folder."""
    override = os.environ.get("LORAKIT_STORE")
    return Path(override) if override else Path(platformdirs.user_data_dir("lorakit")) / "store"
