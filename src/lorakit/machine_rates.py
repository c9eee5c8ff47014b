"""What this machine does in a second: FLOPs of a model's own matmuls, element-wise work, bytes of memory.

Each rate is the best of a few tries, since whatever else the machine does can only slow one down.
"""

import time

import torch

from lorakit.forecast import ModelShape


def matmul_rate(
    shape: ModelShape, dtype: torch.dtype, device: torch.device, *, tokens: int = 1024
) -> float:
    """FLOP/s of this machine on the block's own matmuls, forward and input gradient, best of 4.

    Every distinct (tokens × in) · (in × out) is timed with its transpose; the rate is total
    FLOPs over total time, weighted by how often the model does each.
    """
    flops = seconds = 0.0
    for out_features, in_features, count in shape.shapes:
        x = torch.randn(tokens, in_features, device=device, dtype=dtype)
        weight = torch.randn(out_features, in_features, device=device, dtype=dtype)
        y = torch.randn(tokens, out_features, device=device, dtype=dtype)
        best = min(_seconds(x, weight, y) for _ in range(4))
        flops += count * 4.0 * tokens * in_features * out_features
        seconds += count * best
    return flops / seconds


def memory_rate(device: torch.device, *, elements: int = 1 << 24) -> float:
    """Bytes/s that this machine reads and writes in a long copy of float32, best of 4."""
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    best = min(_copy_seconds(source, target) for _ in range(4))
    return 2.0 * source.numel() * source.element_size() / best


def _copy_seconds(source: torch.Tensor, target: torch.Tensor) -> float:
    started = time.perf_counter()
    target.copy_(source)
    if source.is_cuda:
        torch.cuda.synchronize(source.device)
    return time.perf_counter() - started


def elementwise_rate(
    shape: ModelShape, dtype: torch.dtype, device: torch.device, *, tokens: int = 1024
) -> float:
    """Elements/s of silu(x) · y, the chain of a gated MLP, on the block's widest output, best of 8.

    Fresh memory is written each time, as a step does.
    """
    width = max(out_features for out_features, _, _ in shape.shapes)
    pairs = [torch.randn(2, tokens, width, device=device).to(dtype) for _ in range(4)]
    best = min(_chain_seconds(x, y) for x, y in pairs * 2)
    return tokens * width / best


def _chain_seconds(x: torch.Tensor, y: torch.Tensor) -> float:
    started = time.perf_counter()
    torch.nn.functional.silu(x) * y
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - started


def _seconds(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> float:
    started = time.perf_counter()
    x @ weight.t()
    y @ weight
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - started
