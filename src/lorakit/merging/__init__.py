"""W + s·B·A in a model folder, and the certificate that says how exact it is.

merge.py        W + s·B·A in a new model, and the ordinary model folder of it
merge_files.py  the same from file to file, block of rows by block of rows
certify.py      how far a merged model's logits are from its adapter's
model_folder.py what a merged folder takes over beside the weights
dequantize.py   a quantized model folder -> an ordinary one

The names below are loaded when first used.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Certificate": "certify",
    "LogitComparison": "certify",
    "Tolerance": "certify",
    "merged_model": "merge",
    "write_merged": "merge",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
