#!/usr/bin/env bash
# sentencepiece 0.2.3 brings an OpenMP runtime of its own beside torch's: two in one process.
#
# torch's wheel for CPUs carries libgomp.so.1, sentencepiece's carries libgomp-6a29c32d.so.1.0.0. Their names in the
# file differ, so the loader keeps both, each with threads of its own. A program that looks for "the libgomp of this
# process", to compute with torch's threads or to ask how many there are, may find the other one: by name it comes
# first. Both teams then wait awake for the same cores (GOMP_SPINCOUNT is not shared). transformers imports
# sentencepiece, where it is installed, when it loads some tokenizers.
#
# Versions: torch 2.13.0 (CPU), sentencepiece 0.2.3, threadpoolctl 3.6.0, Linux x86_64.
# Seen: one libgomp in the process after `import torch`, two after `import sentencepiece`; threadpoolctl lists two
# pools of OpenMP, and in the sorted list of files sentencepiece's is the first.
# Exits with 1 where that has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0
"$place/venv/bin/pip" install --quiet sentencepiece==0.2.3 threadpoolctl==3.6.0 numpy
"$place/venv/bin/python" - <<'PYTHON'
import sys
from pathlib import Path

import torch


def runtimes():
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sorted({line.split()[-1] for line in lines if "libgomp" in line})


torch.ones(8, 8) @ torch.ones(8, 8)
alone = runtimes()
import sentencepiece  # noqa: E402
from threadpoolctl import threadpool_info  # noqa: E402

both = runtimes()
pools = [pool["filepath"] for pool in threadpool_info() if pool["user_api"] == "openmp"]
for path in both:
    print(Path(path).parent.name, Path(path).name)
print(f"{len(alone)} before sentencepiece {sentencepiece.__version__}, {len(both)} after, {len(pools)} OpenMP pools")
first = Path(both[0]).parent.name
sys.exit(0 if len(alone) == 1 and len(both) == len(pools) == 2 and first == "sentencepiece.libs" else 1)
PYTHON
