"""A name -> a ready frozen model. The only room that imports transformers.

    spec.py         ModelSpec: which model, where, in which format (imports nothing heavy)
    load.py         load_model, empty_model, load_outline: frozen, every tensor accounted for
    sources.py      resolve: a folder, hub id, GGUF file or built-in name -> where the files are
    files.py        a model folder's files, checked before transformers opens them
    default.py      the built-in smollm2-135m: one checked download, offline ever after
    gguf.py         a GGUF file -> an ordinary model folder
    fingerprint.py  BaseIdentity: hashes of weights, tokenizer and chat template
    weights.py shards.py   where each weight lies in a folder's files; reading and writing them in blocks
    quiet.py        silence for transformers' messages
    light.py        the command's process without what transformers imports for others

The names below are loaded when first used: importing this package costs nothing.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "BaseIdentity": "fingerprint",
    "ModelSpec": "spec",
    "Resolved": "sources",
    "empty_model": "load",
    "identify": "fingerprint",
    "identify_loaded": "fingerprint",
    "identify_settings": "fingerprint",
    "load_model": "load",
    "load_outline": "load",
    "load_tokenizer": "load",
    "resolve": "sources",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
