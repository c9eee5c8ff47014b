"""Adapters of other systems -> lorakit's.

loralib.py   a .pt file of microsoft/LoRA
mlx.py       an adapter folder of mlx-lm
fitting.py   names of a file -> modules of a base; pairs -> an adapter of it
"""

from lorakit.adapters.imports.fitting import as_adapter
from lorakit.adapters.imports.loralib import read_loralib
from lorakit.adapters.imports.mlx import read_mlx

__all__ = ["as_adapter", "read_loralib", "read_mlx"]
