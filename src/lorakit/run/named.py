"""What a command's --adapter means: a folder, or a name in the store."""

import os
from dataclasses import dataclass
from pathlib import Path

from lorakit.adapters.store import Store, content_id
from lorakit.errors import StoreError


@dataclass(frozen=True)
class Found:
    """An adapter that was asked for.

    Attributes:
        folder: where its files are.
        name: what to call it: 'invoices@3', or the path.
    """

    folder: Path
    name: str

    @property
    def content(self) -> str:
        """Its content id, the same whether it lies in a store or not."""
        return content_id(self.folder)


def find_adapter(
    asked: "str | Path | Found", store: str | Path | None = None, *, hashed: bool = True
) -> Found:
    """The adapter that a text means.

    A path that exists wins over a name in the store, and `./NAME` never means a name. An adapter
    from the store is hashed again: a changed byte is an error here and not another answer later.

    Args:
        asked: a folder, or a name: invoices, invoices@3, invoices@4f1d, @4f1d; one that was looked
            up already is itself.
        store: its folder; the user's own by default.
        hashed: whether the files of one from the store are hashed.

    Raises:
        StoreError: it is no path, and the store has no such name, or a file of it was changed.
    """
    if isinstance(asked, Found):
        return asked
    text = str(asked)
    path = Path(asked).expanduser()
    if path.exists() or os.sep in text or text.startswith((".", "~")):
        return Found(path, text)
    try:
        entry = Store(store).checked(text) if hashed else Store(store).resolve(text)
    except StoreError as error:
        raise StoreError(f"{error} (nor is there a folder {text})") from None
    return Found(entry.folder, str(entry))
