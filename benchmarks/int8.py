"""Whether 8-bit products would be faster than the base's own, at the model's shapes.

    python benchmarks/int8.py

Frozen weights can be quantized once, by output channel, and multiplied with activations quantized
as they come. Printed for each shape: the rate of the number format that `--dtype auto` chooses, of
bfloat16, of torch's integer product (`torch._int_mm`), of a linear layer by it, from activations of
that format to activations of that format (largest number of each row, quantizing, product, scaling
back, by torch's operations), and of torch's quantized linear layer with dynamic activations
(oneDNN, FBGEMM), with the relative error of its result on normal numbers.
docs/performance.md says what came of it.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from lorakit.models.devices import torch_dtype
from lorakit.models.spec import ModelSpec

SHAPES = ((576, 1536), (1536, 576), (576, 576))  # (in, out) of SmolLM2-135M's linears


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1300, help="rows of the activations")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    own = torch_dtype(ModelSpec())
    engines = [e for e in torch.backends.quantized.supported_engines if e in ("onednn", "fbgemm")]
    print("| in, out |", str(own).removeprefix("torch."), "| bfloat16 | _int_mm | linear |", end="")
    print(" |".join(f" {engine} (error)" for engine in engines), "|  GFLOP/s or Gop/s")
    for inputs, outputs in SHAPES:
        x, weight = torch.randn(options.tokens, inputs), torch.randn(outputs, inputs)
        giga = 2e-9 * options.tokens * inputs * outputs
        cells = [f"{inputs}, {outputs}"]
        for dtype in (own, torch.bfloat16):
            a, w = x.to(dtype), weight.to(dtype)
            cells.append(f"{giga / seconds(torch.mm, a, w.t()):.0f}")
        a8, w8 = (torch.randint(-127, 128, t.shape, dtype=torch.int8) for t in (x, weight))
        cells.append(f"{giga / seconds(torch._int_mm, a8, w8.t()):.0f}")
        scales_O = weight.abs().amax(1) / 127
        w8 = (weight / scales_O[:, None]).round().to(torch.int8)
        rate = giga / seconds(by_row, x.to(own), w8, scales_O)
        error = relative(by_row(x.to(own), w8, scales_O), x @ weight.t())
        cells.append(f"{rate:.0f} ({error:.3f})")
        for engine in engines:
            torch.backends.quantized.engine = engine
            packed = quantized(weight)
            exact = x @ weight.t()
            got = torch.ops.quantized.linear_dynamic(x, packed, True)
            error = relative(got, exact)
            rate = giga / seconds(torch.ops.quantized.linear_dynamic, x, packed, True)
            cells.append(f"{rate:.0f} ({error:.3f})")
        print("|", " | ".join(cells), "|")


def by_row(x_TI: torch.Tensor, w_OI: torch.Tensor, scales_O: torch.Tensor) -> torch.Tensor:
    """x Wᵀ with one scale a row of x and one a row of W, (T, O) in x's format."""
    scales_T1 = x_TI.abs().amax(1, keepdim=True).float().div_(127)
    x8 = (x_TI / scales_T1).round_().to(torch.int8)
    return (torch._int_mm(x8, w_OI.t()) * (scales_T1 * scales_O)).to(x_TI.dtype)


def relative(got: torch.Tensor, exact: torch.Tensor) -> float:
    return float((got.float() - exact).norm() / exact.norm())


def quantized(weight: torch.Tensor) -> Any:
    """The weight in 8 bits with one scale an output channel, in the layout of the engine."""
    scales = (weight.abs().amax(1) / 127).double()
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    by_channel = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(by_channel, None)


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """The lower quartile of nine calls."""
    function(*arguments)
    times = []
    for _ in range(9):
        started = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - started)
    return sorted(times)[2]


if __name__ == "__main__":
    main()
