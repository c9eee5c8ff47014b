"""A GGUF model in fewer bits, by llama.cpp's own quantizer.

The quantizer is llama.cpp's program llama-quantize: the one on the PATH, or else the one that comes
with the package ik-llama-cpp-python, a fork that keeps llama.cpp's types and files.
"""

import importlib.util
import shutil
import subprocess
from pathlib import Path

from lorakit.errors import ConfigError, MissingExtraError, ModelError, did_you_mean
from lorakit.extras import install

_PROGRAM = "llama-quantize"
_PACKAGE = "ik_llama_cpp"
# The types that need no importance matrix.
TYPES = (
    *("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0"),
    *("IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"),
)


def check_type(name: str) -> str:
    """The type as llama.cpp writes it, whatever its case.

    >>> check_type("q4_k_m")
    'Q4_K_M'

    Raises:
        ConfigError: there is none of that name.
    """
    if name.upper() not in TYPES:
        raise ConfigError(
            f"--quantize {name}: llama.cpp's quantizer has no such type; "
            f"{did_you_mean(name.upper(), TYPES)}"
        )
    return name.upper()


def quantizer() -> Path:
    """Where llama-quantize is.

    Raises:
        MissingExtraError: it is neither on the PATH nor in an installed package.
    """
    if on_path := shutil.which(_PROGRAM):
        return Path(on_path)
    found = importlib.util.find_spec(_PACKAGE)
    if found and found.origin:
        program = Path(found.origin).parent / "bin" / _PROGRAM
        if program.is_file():
            return program
    raise MissingExtraError(
        f"--quantize needs llama.cpp's {_PROGRAM}: {install('gguf')} brings one on Linux with an "
        "x86-64 processor; elsewhere install llama.cpp, so that it is on the PATH"
    )


def quantize(source: Path, target: Path, name: str) -> None:
    """Write `source`, a GGUF model in 16 or 32 bits, as `target` in a type of `TYPES`.

    Raises:
        ConfigError, MissingExtraError: see above.
        ModelError: llama.cpp refuses the model; its own words are quoted.
    """
    done = subprocess.run(
        [quantizer(), source, target, check_type(name)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 or not target.is_file():
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ModelError(
            f"llama.cpp's quantizer cannot write {name} of this model: "
            + (said[-1] if said else f"it ended with code {done.returncode}")
        )
