"""A GGUF model in fewer bits, by llama.cpp's own quantizer.

The quantizer is `llama_model_quantize` of llama.cpp's library, which the package llama-cpp-py-sync
brings as it is built from llama.cpp's sources. It runs in a process of its own, because the library
ends its process where it meets what it does not expect.
"""

import subprocess
import sys
from pathlib import Path

from lorakit.errors import ConfigError, ModelError, did_you_mean
from lorakit.extras import need

# The types that need no importance matrix, as llama-quantize calls them -> llama_ftype of llama.h.
TYPES = {
    **{"Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7},
    **{"Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15},
    **{"Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30},
}
_PROGRAM = """
import os, sys
from llama_cpp_py_sync._cffi_bindings import ffi, get_lib
lib = get_lib()
@ffi.callback("ggml_log_callback")
def log(level, text, data):
    if level >= 4:
        sys.stderr.write(ffi.string(text).decode("utf-8", "replace"))
lib.llama_log_set(log, ffi.NULL)
lib.llama_backend_init()
settings = lib.llama_model_quantize_default_params()
settings.ftype = int(sys.argv[3])
settings.nthread = os.cpu_count() or 1
settings = ffi.new("llama_model_quantize_params *", settings)
sys.exit(int(lib.llama_model_quantize(os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2]), settings) != 0))
"""


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


def need_quantizer() -> None:
    """See that the quantizer is there.

    Raises:
        MissingExtraError: it is not installed.
    """
    need("gguf", "quantizing, which llama.cpp's own library does,", "llama_cpp_py_sync")


def quantize(source: Path, target: Path, name: str) -> None:
    """Write `source`, a GGUF model in 16 or 32 bits, as `target` in a type of `TYPES`.

    Raises:
        ConfigError, MissingExtraError: see above.
        ModelError: llama.cpp refuses the model; its own words are quoted.
    """
    kind = TYPES[check_type(name)]
    need_quantizer()
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(source), str(target), str(kind)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ModelError(
            f"llama.cpp's quantizer cannot write {name} of this model: "
            + (said[-1] if said else f"it ended with code {done.returncode}")
        )
