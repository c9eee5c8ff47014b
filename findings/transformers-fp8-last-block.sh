#!/usr/bin/env bash
# transformers 5.24.0: an FP8 weight whose last block is smaller gets wrong scales when it is unpacked.
#
# Fine-grained FP8 checkpoints hold a scale for each block of 128 x 128; a weight of 192 rows has two rows of
# blocks, of 128 and of 64. `Fp8Dequantize` takes the size of a block from the weight's size over the grid's
# (192 / 2 = 96), so that rows 96 to 127 are multiplied by the second block's scale. No error and no warning. A
# weight of 256 x 320 with its grid of 2 x 3 raises, since 320 is no multiple of 3.
#
# Versions: transformers 5.24.0, torch 2.13.0 (CPU).
# Seen: with scales of 1 and 2 in the two rows of blocks, exactly rows 96 to 127 are twice what they should be, a
# sixth of a 192 x 256 weight; 256 x 320 raises ValueError.
# Exits with 1 where that has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0
"$place/venv/bin/pip" install --quiet transformers==5.24.0
"$place/venv/bin/python" - <<'PYTHON'
import sys

import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

BLOCK = 128


def by_blocks(codes, scales):
    """Each element times the scale of its block."""
    wide = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return codes.float() * wide[: codes.shape[0], : codes.shape[1]]


def unpacked(codes, scales):
    return Fp8Dequantize(None)._dequantize_one(codes, scales, torch.float32)


generator = torch.Generator().manual_seed(0)
codes = torch.randn(192, 256, generator=generator).to(torch.float8_e4m3fn)
scales = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
apart = unpacked(codes, scales) != by_blocks(codes, scales)
rows = apart.any(1).nonzero().flatten().tolist()
print(f"192 x 256: {apart.float().mean():.3f} of the elements are wrong, rows {rows[0]} to {rows[-1]}")
raised = False
try:
    unpacked(torch.zeros(256, 320).to(torch.float8_e4m3fn), torch.ones(2, 3))
except ValueError as error:
    raised = True
    print("256 x 320:", error)
sys.exit(0 if rows == list(range(96, 128)) and raised else 1)
PYTHON
