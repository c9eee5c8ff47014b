"""What a run needs before it starts: parameters, FLOPs, bytes, seconds.

FLOPs of one training token, with N block weights, r·P adapter parameters, H head weights, L
layers of width d, mean sequence length s and share c of supervised tokens:

    F_lora = 4 N + 6 P r + 7 s d L + 4 H c        F_full = 6 N + 7 s d L + 6 H c

N and P count what a token reaches: of the experts of a mixture those that its router sends it to. There are
2 N + 2 P r + 2 s d L more where activations are computed again in the backward pass. A frozen
weight costs 2 FLOPs forward and 2 for the gradient of its input, but none for its own.
The head runs on supervised tokens only. Time is that of the matmuls and of everything else,

    seconds = tokens · (F / (MATMUL_SHARE · m) + PASSES · K / e)

with m, FLOP/s, and e, elements a second of an element-wise chain, measured on this machine at the
model's own shapes, and K the elements that a token keeps for the backward pass. Where matmuls have
units of their own (AMX, tensor cores) it is the second that decides.

Full fine-tuning holds 16 bytes a parameter (weight, gradient, both moments, and a float32 master
copy where the weight is narrower; less where moments are held in 8 bits) where LoRA holds the frozen weight alone and 16 bytes for each of
the adapter's; and each of its steps reads and writes all of that once, at the rate of memory.
"""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from lorakit.kernels.packed.counting import count_parameters
from lorakit.lora.kinds import geometry_of, kind_of
from lorakit.lora.parameters import bare_parameters, count_of, expert_geometry, is_fused
from lorakit.lora.planning import Target
from lorakit.models.dimensions import experts_a_token

# Share of the measured rate that the matmuls of a step reach: its weights and activations are not
# in the cache, its attention has small inner dimensions.
MATMUL_SHARE = 0.6
# Element-wise chains (two reads, two steps, one write) for each element kept, backward included.
PASSES = 6.5
# The same where the forward pass runs once more.
RECOMPUTED = 1.3
# Elements kept of a token for the backward pass, over the widths of all its linears' inputs and
# outputs: those, norms, rotary embeddings and the activation, less what is shared. Measured: 1.6
# to 1.7 on SmolLM2-135M in float32.
KEPT = 1.65
# Memory that the process holds over the elements that fused blocks keep: what the allocator could
# not give back, and a block's own gradients. Measured: 1.3 to 1.4 on SmolLM2-135M at 1,024 to
# 4,096 tokens.
HELD = 1.4
# Bytes that a step of AdamW reads and writes for each parameter: gradient, parameter and moments,
# about what 16 bytes read and 12 written come to.
STEP_BYTES = 28
# The interpreter, torch, transformers and tokenizers before any weight is loaded.
RUNTIME_BYTES = 800_000_000


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that FLOPs and bytes depend on.

    Attributes:
        block_parameters: N, weights of linear layers inside the blocks, and of the experts that a token
            reaches.
        head_parameters: H, weights of the output head, tied or not.
        layers, width: L and d.
        vocabulary: rows of the head.
        total_parameters: all, a tied weight counted once.
        shapes: distinct (out, in) of the block linears, with how often each occurs.
        activation_floats: elements kept for the backward pass for each token.
    """

    block_parameters: int
    head_parameters: int
    layers: int
    width: int
    vocabulary: int
    total_parameters: int
    shapes: tuple[tuple[int, int, int], ...]
    activation_floats: int


@dataclass(frozen=True)
class Forecast:
    """A run, before it starts.

    Attributes:
        trainable_parameters: of the adapter (or the model, for full fine-tuning).
        flops_per_token: F, training FLOPs of one real token.
        tokens: real tokens of the whole run.
        peak_memory_bytes: largest resident size of the process.
        seconds: of the steps, evaluations left out.
        matmul_flops: measured rate, FLOP/s, at the model's shapes.
        elementwise_rate: measured rate, elements/s.
        recompute: whether activations are computed again in the backward pass.
    """

    trainable_parameters: int
    flops_per_token: float
    tokens: int
    peak_memory_bytes: int
    seconds: float
    matmul_flops: float
    elementwise_rate: float
    recompute: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for result.json."""
        return asdict(self)


def shape_of(model: nn.Module) -> ModelShape:
    """Read the shape off a model without an adapter; the meta device will do."""
    counts: dict[tuple[int, int], int] = {}
    blocks: set[str] = set()
    head = vocabulary = width = 0
    kept = 0
    for path, module in model.named_modules():
        if kind_of(module) not in ("linear", "conv1d"):
            continue
        geometry = geometry_of(module, path)
        size = (geometry.out_features, geometry.in_features)
        indices = [part for part in path.split(".") if part.isdecimal()]
        if indices:
            blocks.add(indices[0])
            counts[size] = counts.get(size, 0) + 1
            kept += geometry.in_features + geometry.out_features
        else:
            head, vocabulary = size[0] * size[1], size[0]
            width = geometry.in_features
    for (out, width), times in _reached_matrices(model):
        counts[out, width] = counts.get((out, width), 0) + times
        kept += times * (out + width)
    return ModelShape(
        block_parameters=sum(o * i * n for (o, i), n in counts.items()),
        head_parameters=head,
        layers=len(blocks),
        width=width,
        vocabulary=vocabulary,
        total_parameters=count_parameters(model),
        shapes=tuple((o, i, n) for (o, i), n in counts.items()),
        activation_floats=kept,
    )


def _reached_matrices(model: nn.Module) -> list[tuple[tuple[int, int], int]]:
    """(out, in) of one expert's matrix, and of how many a token reaches, for each parameter of experts."""
    found = []
    for module, name in bare_parameters(model).values():
        if kind_of(module) or not is_fused(module, name):
            continue
        geometry, count = expert_geometry(module, name), count_of(module)
        rows = geometry.out_features // (1 if geometry.experts > 1 else count)
        found.append(((rows, geometry.in_features), _experts_a_token(model, module, count)))
    return found


def _experts_a_token(model: nn.Module, module: nn.Module, count: int) -> int:
    """Of a module's experts those that compute for a token.

    That is as many as the router chooses, by the configuration; all of them where that does not say, or
    where the module is not told the choice: it multiplies every token by every expert (Llama 4).
    """
    config = getattr(model, "config", None)
    chosen = None if config is None else experts_a_token(config)
    told = len(inspect.signature(type(module).forward).parameters) > 2
    return min(count, chosen) if chosen and told else count


def reached_share(model: nn.Module, targets: Iterable[Target]) -> float:
    """Of the parameters of pairs the share that a token reaches: 1 without pairs on experts.

    Args:
        model: the base, or one with pairs attached.
        targets: what has pairs.
    """
    held = list(targets)
    reached = 0.0
    for target in held:
        count, share = target.geometry.experts, 1.0
        if count > 1:
            owner = model.get_submodule(target.path.rpartition(".")[0])
            share = _experts_a_token(model, owner, count) / count
        reached += target.trainable * share
    return reached / sum(target.trainable for target in held) if held else 1.0


def flops_per_token(
    shape: ModelShape, trainable: int, mean_length: float, loss_share: float, *, full: bool = False
) -> float:
    """F, as above.

    Args:
        shape: of the model.
        trainable: P·r, parameters of the adapter that a token reaches; not read for full fine-tuning.
        mean_length: s, of the sequences, weighted by token: Σ s² / Σ s.
        loss_share: c, supervised tokens over all tokens.
        full: for full fine-tuning.
    """
    attention = 7 * mean_length * shape.width * shape.layers
    if full:
        return 6 * shape.block_parameters + attention + 6 * shape.head_parameters * loss_share
    frozen = 4 * shape.block_parameters + 4 * shape.head_parameters * loss_share
    return frozen + 6 * trainable + attention


def forecast(
    shape: ModelShape,
    trainable: int,
    lengths: Sequence[int],
    loss_tokens: int,
    *,
    epochs_tokens: int,
    batch_tokens: int,
    dtype: torch.dtype,
    rate: float,
    elementwise: float,
    elements_kept: float | None = None,
    recompute: bool = False,
    full: bool = False,
    frozen_bytes: int | None = None,
    steps: int = 0,
    bytes_rate: float | None = None,
    reached: float = 1.0,
    moment_bytes: int | None = None,
) -> Forecast:
    """What training on rows of these lengths will need.

    Args:
        shape: of the base.
        trainable: parameters of the adapter; all of the model's for full fine-tuning.
        lengths: tokens of each row.
        loss_tokens: supervised tokens among them.
        epochs_tokens: real tokens of the whole run.
        batch_tokens: tokens of the largest forward pass.
        dtype: of the base.
        rate: FLOP/s, see `matmul_rate`.
        elementwise: elements/s, see `elementwise_rate`.
        elements_kept: for the backward, of each token, where the model's blocks run fused; None
            for the model's own code, of which it is estimated.
        recompute: with activation checkpointing.
        full: every parameter of the base is trained, without an adapter.
        frozen_bytes: of the base, where some of its weights are packed; else they follow from `dtype`.
        steps: optimizer steps, whose time counts where `bytes_rate` is given.
        bytes_rate: bytes/s, see `memory_rate`.
        reached: of the adapter's parameters the share that a token reaches, see `reached_share`.
        moment_bytes: of both moments of all trained parameters; None: in float32.
    """
    total = sum(lengths)
    mean = sum(n * n for n in lengths) / total
    computing = round(trainable * reached)
    flops = flops_per_token(shape, computing, mean, loss_tokens / total, full=full)
    if recompute:
        flops += 2 * shape.block_parameters + (0 if full else 2 * computing)
        flops += 2 * mean * shape.width * shape.layers
    size = dtype.itemsize
    elements = KEPT * shape.activation_floats if elements_kept is None else elements_kept
    chains = PASSES * elements * (RECOMPUTED if recompute else 1.0)
    kept = elements if elements_kept is None else HELD * elements
    if recompute:  # the input of every block, and all of the one that is computed again
        kept = shape.layers * shape.width + kept / shape.layers
    activations = kept * size * batch_tokens
    # The logits of a chunk, and the few rows whose softmax is taken at once (training/loss.py).
    head = shape.vocabulary * (512 * size + 16 * 4)
    held = shape.total_parameters * size if frozen_bytes is None else frozen_bytes
    frozen = 0 if full else held
    moments = 8 * trainable if moment_bytes is None else moment_bytes
    memory = RUNTIME_BYTES + frozen + 8 * trainable + moments
    stepping = steps * STEP_BYTES * trainable / bytes_rate if bytes_rate else 0.0
    return Forecast(
        trainable_parameters=trainable,
        flops_per_token=flops,
        tokens=epochs_tokens,
        peak_memory_bytes=int(memory + activations + head),
        seconds=epochs_tokens * (flops / (rate * MATMUL_SHARE) + chains / elementwise) + stepping,
        matmul_flops=rate,
        elementwise_rate=elementwise,
        recompute=recompute,
    )
