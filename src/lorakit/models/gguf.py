"""Any GGUF causal language model -> an ordinary dense model folder.

transformers reads the file and unpacks its blocks; three things are done here because it does
them wrong or not at all (seen in 5.24): the file is checked for truncation first; the pieces into
which text is split before byte-pair encoding follow ``tokenizer.ggml.pre`` (it treats every
unknown scheme as GPT-2's, so digits would be grouped where the model has seen them one by one);
and a scheme that nobody here knows is an error, since wrong token ids train without complaint.
"""

import hashlib
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lorakit.errors import ModelError
from lorakit.files.cache import Progress, build_folder, cache_dir, no_progress
from lorakit.files.pointers import pointer_problem
from lorakit.models.quiet import no_stderr, quiet

CONVERSION = 1
# Digits stand alone, then GPT-2's pattern: llama.cpp's LLAMA_VOCAB_PRE_TYPE_SMOLLM and its kin.
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
# Those that transformers splits as llama.cpp does (its GGUF_PRE_TOKENIZER_SPLITS), or plain GPT-2.
_SPLIT_BY_TRANSFORMERS = {
    *("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"),
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    *("dbrx", "smaug-bpe", "tekken", "qwen2", "deepseek-r1-qwen", "kormo", "megrez", "qwen35"),
    *("gpt-4o", "llama4", "kanana2", "minimax-m2"),
}
_FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_F32, _F16, _BF16 = 0, 1, 30


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself: its scalar metadata and the ggml types of its tensors."""

    metadata: dict[str, Any]
    tensor_types: dict[str, int]

    def stored_dtype(self) -> str:
        """The format to keep the weights in: the file's own, or bfloat16 for quantized blocks.

        Rounding an unpacked block to bf16 (8 bits of mantissa) is finer than the block's own steps.
        """
        types = set(self.tensor_types.values())
        if not types <= {_F32, _F16, _BF16} or _BF16 in types:
            return "bfloat16"
        return "float16" if _F16 in types else "float32"


def read_header(path: Path) -> Header:
    """Parse the metadata and the table of tensors, and check that the file is as long as they say.

    Raises:
        ModelError: not a GGUF file, or truncated.
    """
    from gguf import GGML_QUANT_SIZES

    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            problem = pointer_problem(path) or "is not a GGUF file: it does not start with 'GGUF'"
            raise ModelError(f"{path} {problem}")
        try:
            _, tensors, pairs = struct.unpack("<IQQ", file.read(20))
            metadata = {}
            for _ in range(pairs):
                key = _string(file)
                value = _value(file, *struct.unpack("<I", file.read(4)))
                if value is not None:
                    metadata[key] = value
            types, last = {}, 0
            sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
            for _ in range(tensors):
                name = _string(file)
                (dimensions,) = struct.unpack("<I", file.read(4))
                shape = struct.unpack(f"<{dimensions}Q", file.read(8 * dimensions))
                kind, offset = struct.unpack("<IQ", file.read(12))
                if kind not in sizes:
                    raise ModelError(f"{path}: tensor {name} is of ggml type {kind}: unknown here")
                per_block, block_bytes = sizes[kind]
                last = max(last, offset + math.prod(shape) // per_block * block_bytes)
                types[name] = kind
            step = metadata.get("general.alignment", 32)
            complete = -(-file.tell() // step) * step + last <= size
        except (struct.error, UnicodeDecodeError, MemoryError, OverflowError):
            complete = False
    if not complete:
        raise ModelError(f"{path} is truncated ({size} bytes): fetch or copy it again")
    return Header(metadata, types)


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    raw = file.read(length)
    if len(raw) < length:
        raise struct.error
    return raw.decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    """One metadata value; arrays are skipped and give None."""
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        form = "<" + _FIXED[kind] if kind in _FIXED else ""
        if not form:
            raise struct.error
        return struct.unpack(form, file.read(struct.calcsize(form)))[0]
    inner, count = struct.unpack("<IQ", file.read(12))
    if inner in _FIXED:
        file.seek(struct.calcsize("<" + _FIXED[inner]) * count, os.SEEK_CUR)
    else:
        for _ in range(count):
            _value(file, inner)
    return None


def folder_of(path: Path, progress: Progress = no_progress) -> Path:
    """The model folder that a GGUF file stands for, converted into the cache the first time.

    Reading a GGUF takes tens of seconds, so it is done once for a file's (path, size, time of
    change); the folder then loads like any other.

    Raises:
        ModelError: the file is broken, or its architecture or tokenizer is not known.
    """
    header = read_header(path)
    target = converted(path)

    def build(folder: Path) -> None:
        import torch

        progress("convert", 0, 1)
        model, tokenizer = read(path)
        model.to(getattr(torch, header.stored_dtype()))
        save(model, tokenizer, folder)
        progress("convert", 1, 1)

    return build_folder(target, build)


def read_config(path: Path) -> Any:
    """The configuration that transformers makes of a GGUF file's metadata; no tensor is read.

    Raises:
        ModelError: not a GGUF file, truncated, or of an architecture that transformers does not know.
    """
    from transformers import AutoConfig

    header = read_header(path)
    try:
        with quiet(), no_stderr():
            return AutoConfig.from_pretrained(
                path.parent, gguf_file=path.name, local_files_only=True
            )
    except (ValueError, NotImplementedError, KeyError, RuntimeError, ImportError, OSError) as error:
        raise ModelError(
            f"{path} (architecture {header.metadata.get('general.architecture')!r}) cannot be "
            f"read as a causal language model: {error}"
        ) from error


def converted(path: Path) -> Path:
    """Where the conversion of this very state of the file lies, or will lie."""
    stat = path.stat()
    key = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{CONVERSION}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return cache_dir() / "models" / f"{path.stem}-{digest}"


def read(path: Path) -> tuple[Any, Any]:
    """A GGUF file as ``(model in float32, tokenizer)``.

    ``GgufConfig(dequantize=True)`` makes the weights plain: without it they stay packed and can
    neither be trained through nor saved. Float32, because unpacking computes in the requested
    dtype, and in bf16 that is slow on a CPU without bf16 units, and coarser.

    Raises:
        ModelError: transformers or gguf does not know the architecture or the tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import GgufConfig

    header = read_header(path)
    tokenizer = read_tokenizer(path, header)
    try:
        with quiet(), no_stderr():
            model = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                local_files_only=True,
            )
    except (ValueError, NotImplementedError, KeyError, RuntimeError, ImportError, OSError) as error:
        raise ModelError(
            f"{path} (architecture {header.metadata.get('general.architecture')!r}) cannot be "
            f"read as a causal language model: {error}"
        ) from error
    return model, tokenizer


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write an ordinary model folder of a model that came from a GGUF file."""
    # What is written is plain; the note that it came from GGUF would make it load as packed.
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def read_tokenizer(path: Path, header: Header) -> Any:
    """The tokenizer that a GGUF file describes, or that lies beside it.

    Raises:
        ModelError: it splits text in a way that is not known here.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    if (path.parent / "tokenizer.json").is_file():
        with quiet():
            return AutoTokenizer.from_pretrained(path.parent, local_files_only=True)
    byte_level = header.metadata.get("tokenizer.ggml.model") == "gpt2"
    scheme = header.metadata.get("tokenizer.ggml.pre")
    if byte_level and scheme not in _SINGLE_DIGITS | _SPLIT_BY_TRANSFORMERS:
        raise ModelError(
            f"{path} splits text by the scheme {scheme!r} (tokenizer.ggml.pre), which lorakit does "
            "not know; guessing would give wrong tokens. Put the model's tokenizer.json and "
            "tokenizer_config.json beside the file: they are used instead."
        )
    try:
        with quiet(), no_stderr():
            tokenizer = AutoTokenizer.from_pretrained(
                path.parent, gguf_file=path.name, local_files_only=True
            )
    except (ValueError, KeyError, ImportError, OSError) as error:
        raise ModelError(
            f"{path} (architecture {header.metadata.get('general.architecture')!r}): its tokenizer "
            f"cannot be read: {error}"
        ) from error
    if byte_level and scheme in _SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    return tokenizer
