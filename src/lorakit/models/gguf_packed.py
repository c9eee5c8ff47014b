"""Any GGUF causal language model -> a model folder whose linear layers keep the file's blocks.

The folder is like one that another library quantized: config.json says "gguf" with the type of each layer's
blocks, and the layer's weight is the file's own bytes, (out_features, bytes of a row). Where llama.cpp
orders the rows of a matrix otherwise than transformers (q and k of llama) whole rows are moved. Everything
else is unpacked as in lorakit.models.gguf: embeddings, the output head, norms.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.errors import ModelError
from lorakit.files.cache import Progress, build_folder, no_progress
from lorakit.files.whole import write_json
from lorakit.models import gguf
from lorakit.models.files import read_config
from lorakit.models.quiet import quiet
from lorakit.models.weights import tensors_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lorakit.files.shards import Planned
    from lorakit.models.packed_files import PackedTensor

_PLAIN = (0, 1, 30)  # F32, F16, BF16
_UNPACK = "leave --base-dtype out: the file is unpacked then"


def folder_of(path: Path, progress: Progress = no_progress) -> Path:
    """The model folder that a GGUF file stands for, made in the cache the first time.

    Raises:
        ModelError: as `write`.
    """
    dense = gguf.converted(path)

    def build(folder: Path) -> None:
        progress("convert", 0, 1)
        write(path, folder)
        progress("convert", 1, 1)

    return build_folder(dense.with_name(f"{dense.name}-packed"), build)


def write(path: Path, folder: Path, *, config: Any = None, tokenizer: Any = None) -> None:
    """Write the folder; one tensor is in memory at a time.

    Args:
        path: a GGUF file.
        folder: gets the files.
        config, tokenizer: what to save in the place of those that the file describes.

    Raises:
        ModelError: the file is broken; its architecture, tokenizer or a layer's type of blocks is not
            known; it has no blocks, or keeps experts in them.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM

    from lorakit.files import shards

    header = gguf.read_header(path)
    tokenizer = gguf.read_tokenizer(path, header) if tokenizer is None else tokenizer
    config = gguf.read_config(path) if config is None else config
    with torch.device("meta"), quiet():
        model: Any = AutoModelForCausalLM.from_config(config)
    stored = header.stored_dtype()
    types: dict[str, str] = {}
    tensors = list(_tensors(GGUFReader(path), model, header, stored, types, path))
    if not types:
        raise ModelError(f"{path} keeps no linear layer in blocks: {_UNPACK}")
    shards.write_stream(folder / "model.safetensors", tensors)
    with quiet():
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(folder)
    settings = {"quant_method": "gguf", "types": types}
    raw = {"architectures": [type(model).__name__], **config.to_dict(), "dtype": stored}
    raw["architectures"] = [type(model).__name__]
    write_json(folder / "config.json", raw | {"quantization_config": settings})


def packed_sizes(path: Path, model: Any) -> dict[str, int]:
    """Bytes of the blocks of each layer that stays packed, by its path; nothing is unpacked or written.

    Args:
        path: a GGUF file.
        model: its outline on the meta device.

    Raises:
        ModelError: as `write`.
    """
    from gguf import GGUFReader

    header = gguf.read_header(path)
    types: dict[str, str] = {}
    stored = header.stored_dtype()
    planned = list(_tensors(GGUFReader(path), model, header, stored, types, path))
    if not types:
        raise ModelError(f"{path} keeps no linear layer in blocks: {_UNPACK}")
    sizes = {each.name.removesuffix(".weight"): each.size for each in planned}
    return {stem: sizes[stem] for stem in types}


Unpacked = tuple[str, tuple[int, ...], Iterator[memoryview]]
"""A tensor as the unpacked folder holds it: its dtype code, its shape, its bytes in pieces."""


def unpacked(folder: Path) -> dict[str, Unpacked]:
    """What `gguf.folder_of` would have in the place of a folder's packed tensors; {} of another folder.

    The numbers are the same to the bit, so that a base is the same base either way.
    """
    import torch

    from lorakit.files.tensors import CODES
    from lorakit.kernels.packed.ggml import BLOCK_TYPES
    from lorakit.models.packed_files import packed_tensors

    raw = read_config(folder)
    settings = raw.get("quantization_config")
    if not isinstance(settings, dict) or settings.get("quant_method") != "gguf":
        return {}
    dtype = getattr(torch, raw["dtype"])

    def pieces(tensor: "PackedTensor") -> Iterator[memoryview]:
        from lorakit.files.shards import as_bytes, blocks
        from lorakit.kernels.packed.packing import rows

        packing = tensor.read()
        for start, stop in blocks(packing.shape):
            yield as_bytes(rows(packing, start, stop, dtype))

    found: dict[str, Unpacked] = {}
    for tensor in packed_tensors(settings, tensors_of(folder), folder):
        out, row_bytes = tensor.held[f"{tensor.stem}.weight"].entry.shape
        shape = out, BLOCK_TYPES[settings["types"][tensor.stem]].columns(row_bytes)
        found[f"{tensor.stem}.weight"] = CODES[dtype], shape, pieces(tensor)
    return found


def _tensors(
    reader: Any, model: Any, header: gguf.Header, stored: str, types: dict[str, str], path: Path
) -> "Iterator[Planned]":
    """The tensors of the new file; `types` gets the type of each layer that stays packed."""
    import torch
    from torch import nn
    from transformers import modeling_gguf_pytorch_utils as theirs
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    from lorakit.files.shards import Planned
    from lorakit.files.tensors import CODES
    from lorakit.kernels.packed.ggml import BLOCK_TYPES

    architecture = str(header.metadata.get("general.architecture"))
    if is_gguf_arch_supported(architecture):
        raise ModelError(f"{path}: {architecture} models cannot be kept packed here; {_UNPACK}")
    kinds = {kind.code: kind.name for kind in BLOCK_TYPES.values()}
    maker: Any = theirs.TENSOR_PROCESSORS.get(architecture, theirs.TensorProcessor)
    processor = maker(config=model.config.to_dict())
    names = theirs.get_gguf_hf_weights_map(model, processor)
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    dtype = getattr(torch, stored)
    for tensor in reader.tensors:
        name = names.get(tensor.name)
        if name is None:  # what transformers has no place for either, such as rope_freqs
            continue
        if tensor.data.ndim > 2:
            raise ModelError(
                f"{path} holds experts ({tensor.name}), which stay packed nowhere: {_UNPACK}"
            )
        layer = modules.get(name.removesuffix(".weight"))
        linear = type(layer) is nn.Linear and layer is not head and name.endswith(".weight")
        rows = _rows(processor, tensor.name, tuple(tensor.shape[::-1])) if linear else None
        if rows is not None and header.tensor_types[tensor.name] not in _PLAIN:
            if int(tensor.tensor_type) not in kinds:
                raise ModelError(
                    f"{path}: {tensor.name} is of type {tensor.tensor_type.name}, which is not kept "
                    f"packed here ({', '.join(kinds.values())} are); {_UNPACK}"
                )
            types[name.removesuffix(".weight")] = kinds[int(tensor.tensor_type)]
            parts = _later(_moved, tensor, rows)
            yield Planned(name, "U8", tuple(tensor.data.shape), parts, int(tensor.data.nbytes))
            continue
        shape = tuple(model.get_parameter(name).shape)
        parts = _later(_dense, tensor, processor, shape, dtype)
        size = dtype.itemsize
        for side in shape:
            size *= side
        yield Planned(name, CODES[dtype], shape, parts, size)


def _later(make: "Callable[..., Tensor]", *arguments: Any) -> Iterator[memoryview]:
    """The bytes of a tensor that is made when they are written."""
    from lorakit.files.shards import as_bytes

    yield as_bytes(make(*arguments))


def _moved(tensor: Any, rows: "np.ndarray | slice") -> "Tensor":
    """A tensor's blocks with their rows in transformers' order."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(tensor.data[rows]))


def _dense(tensor: Any, processor: Any, shape: tuple[int, ...], dtype: Any) -> "Tensor":
    """A tensor unpacked and put into transformers' order, as transformers' own reader does it."""
    import numpy as np
    import torch
    from gguf import dequantize

    held: dict[str, Any] = {"tensors": {}}
    values = dequantize(tensor.data, tensor.tensor_type)
    done = processor.process(
        weights=values, name=tensor.name, tensor_key_mapping={}, parsed_parameters=held
    )
    weights = done.weights if done.name is not None else next(iter(held["tensors"].values()))
    made: Tensor = torch.from_numpy(np.array(weights)).to(dtype)
    if tuple(made.shape) != shape:
        raise ModelError(f"{tensor.name} is {tuple(made.shape)}, and the model's is {shape}")
    return made


def _rows(processor: Any, name: str, shape: tuple[int, ...]) -> "np.ndarray | slice | None":
    """Which row of the file each row of the weight is; None where more than rows is moved.

    Seen from what transformers' own reader does with a matrix of row numbers, and one of column numbers.
    """
    import numpy as np

    def process(marks: Any) -> Any:
        return processor.process(
            weights=marks, name=name, tensor_key_mapping={}, parsed_parameters={"tensors": {}}
        )

    rows, columns = shape
    numbers = np.broadcast_to(np.arange(rows, dtype=np.int32)[:, None], shape)
    moved = process(numbers)
    if moved.weights is numbers:
        return slice(None)
    if moved.name is None or moved.weights.shape != shape:
        return None
    order = np.array(moved.weights[:, 0])
    across = np.broadcast_to(np.arange(columns, dtype=np.int32), shape)
    kept = np.array_equal(moved.weights, np.broadcast_to(order[:, None], shape))
    kept = kept and np.array_equal(process(across).weights, across)
    return order if kept and np.array_equal(np.sort(order), np.arange(rows)) else None
