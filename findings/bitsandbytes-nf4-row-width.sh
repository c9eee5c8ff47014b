#!/usr/bin/env bash
# bitsandbytes 0.50.2 on a CPU: 4-bit weights come back wrong where rows end within a block of 64.
#
# A block of 64 numbers shares a scale, and blocks run over the flattened weight. Where the weight's count is a
# multiple of 64 and its width is none, `quantize_4bit` and then `dequantize_4bit` give numbers that are two to
# three times as far off as NF4's rounding is (rows are read as if each began a block). No error and no warning.
# Widths that are multiples of 64 are right, and so are weights whose count is no multiple of 64 either.
# Widths of real models are multiples of 64; those of tests and of small adapters' bases often are not.
#
# Versions: bitsandbytes 0.50.2, torch 2.13.0 (CPU), float32.
# Seen: error as a share of the norm .092 at (64, 64), .093 at (30, 100); .30 at (48, 48), .25 at (64, 96). An
# oracle in ten lines of torch (the 16 levels, the largest of each block) has .09 at all four.
# Exits with 1 where that has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0
"$place/venv/bin/pip" install --quiet bitsandbytes==0.50.2 numpy
"$place/venv/bin/python" - <<'PYTHON'
import sys

import bitsandbytes.functional as F
import torch

LEVELS = F.get_4bit_type("nf4", device="cpu").float()


def by_hand(weight):
    """NF4 in blocks of 64 of the flattened weight."""
    flat = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    largest = flat.abs().amax(1, keepdim=True)
    codes = (flat[..., None] / largest[..., None] - LEVELS).abs().argmin(-1)
    return (LEVELS[codes] * largest).flatten()[: weight.numel()].view_as(weight)


def off(weight, other):
    return float((other - weight).norm() / weight.norm())


torch.manual_seed(0)
seen = {}
for shape in ((64, 64), (30, 100), (48, 48), (64, 96)):
    weight = torch.randn(shape)
    codes, state = F.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    seen[shape] = off(weight, F.dequantize_4bit(codes, state)), off(weight, by_hand(weight))
    print(shape, "bitsandbytes {:.3f}, by hand {:.3f}".format(*seen[shape]))
right = all(0.08 < hand < 0.1 for _, hand in seen.values())
right = right and all(0.08 < seen[shape][0] < 0.1 for shape in ((64, 64), (30, 100)))
wrong = all(seen[shape][0] > 0.14 for shape in ((48, 48), (64, 96)))
sys.exit(0 if right and wrong else 1)
PYTHON
