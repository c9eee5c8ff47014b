"""The 256 levels of an 8-bit format for numbers of many magnitudes, between -1 and 1 or between 0 and 1.

Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861, section 2: a sign, an
exponent of base 10 that is written as a run of zero bits, and a linear fraction in the bits that are left. Without
a sign its bit goes to the fraction. bitsandbytes' `create_dynamic_map` gives the same; QLoRA keeps the scales of its
blocks in the signed one, and 8-bit optimizers their moments in both.
"""

import torch


def _levels(*, signed: bool, exponent_bits: int = 7) -> tuple[float, ...]:
    found: list[float] = []
    for exponent in range(exponent_bits):
        fractions = 2**exponent if signed else 2 ** (exponent + 1)
        ends = torch.linspace(0.1, 1, fractions + 1, dtype=torch.float32)
        means = (ends[:-1] + ends[1:]) / 2
        size = 10.0 ** (exponent - exponent_bits + 1)
        found += (size * means).tolist() + ((-size * means).tolist() if signed else [])
    return tuple(sorted([*found, 0.0, 1.0]))


DYNAMIC = _levels(signed=True)
DYNAMIC_UNSIGNED = _levels(signed=False)
