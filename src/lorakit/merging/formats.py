"""The number format of each tensor of a model folder, and a model saved in the formats of another folder.

A model that transformers puts together while it loads is held in one format. Its files may hold several:
norms in float32 beside weights in bfloat16. A merged folder has, tensor by tensor, those of the files.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lorakit.files import shards
from lorakit.files.header import StoredTensor
from lorakit.files.tensors import DTYPES
from lorakit.merging.merge_files import planned_copy, write_index
from lorakit.models.weights import tensors_of


def format_of(held: Mapping[str, StoredTensor], kept: torch.dtype | None) -> torch.dtype:
    """The format that most numbers of the merged files have: `kept`, or that of the base's own."""
    if kept is not None:
        return kept
    sizes: dict[str, int] = {}
    for place in held.values():
        if place.entry.dtype in DTYPES:
            entry = place.entry
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.end - entry.start
    return DTYPES[max(sizes, key=lambda code: sizes[code])]


def save_as_in(
    model: Any, folder: Path, held: Mapping[str, StoredTensor], other: torch.dtype
) -> None:
    """Save a model, each tensor rounded once to the format that the tensor of its name has elsewhere.

    transformers gives tensors the names again that they had in the files it loaded.

    Args:
        model: of transformers, in a format that holds the others.
        folder: gets the files.
        held: tensors by name, with the wanted formats.
        other: the format of tensors that `held` has not.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        wide = Path(place)
        model.save_pretrained(wide)
        files: dict[str, list[shards.Planned]] = {}
        for tensor in sorted(tensors_of(wide).values(), key=lambda t: (t.file, t.entry.start)):
            known = held.get(tensor.name)
            dtype = other if known is None else DTYPES.get(known.entry.dtype)
            files.setdefault(tensor.file.name, []).append(planned_copy(tensor, tensor.name, dtype))
        for name, tensors in files.items():
            shards.write_stream(folder / name, tensors)
        write_index(folder, files)
        for file in wide.iterdir():
            if file.name not in files and not file.name.endswith(".index.json"):
                shutil.copyfile(file, folder / file.name)
