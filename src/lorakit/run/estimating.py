"""What a run needs before it starts: the forecast of its model on its rows, on this machine."""

import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorakit import forecast as forecasting
from lorakit import machine_rates
from lorakit.data import TokenTable
from lorakit.execution.other_work import OtherWork, said
from lorakit.execution.runnable import Runnable
from lorakit.files.wording import size
from lorakit.kernels.packed.counting import packing_of, weight_bytes, workspace_bytes
from lorakit.run.machine import available_memory
from lorakit.training import TrainSpec
from lorakit.training.moments import BYTES_8BIT

# The forecast is good to about a tenth, and other programs want some memory too.
MEMORY_SHARE = 0.85


@dataclass(frozen=True)
class RunEstimate:
    """What a run needs before it starts, and whether it recomputes activations for it.

    Attributes:
        forecast: parameters, FLOPs, memory and time.
        recompute: activation checkpointing, 'auto' resolved.
        note: what the user should know of that, '' for nothing.
        busy: what other processes' work means for the forecast, '' where the machine is quiet. It is shown
            and not recorded.
    """

    forecast: forecasting.Forecast
    recompute: bool
    note: str
    busy: str = ""


def estimate_run(
    model: Any,
    table: TokenTable,
    spec: TrainSpec,
    *,
    steps: int,
    trainable: int,
    full: bool = False,
    reached: float = 1.0,
    frozen_bytes: int | None = None,
) -> RunEstimate:
    """Forecast the training of a model on these rows.

    Args:
        model: the base, or one with pairs attached.
        table: the rows.
        spec: the schedule.
        steps: optimizer steps.
        trainable: parameters of the adapter; all of the model's for full fine-tuning.
        full: every parameter of the base is trained.
        reached: of the adapter's parameters the share that a token reaches (`forecast.reached_share`).
        frozen_bytes: of the base, where it will be held in another way than this one.
    """
    lengths, work = table.lengths.tolist(), OtherWork()
    if frozen_bytes is None and packing_of(model):
        frozen_bytes = weight_bytes(model) + workspace_bytes(model)
    return estimate(
        forecasting.shape_of(model),
        lengths,
        table.loss_tokens,
        spec,
        steps=steps,
        trainable=trainable,
        dtype=model.dtype,
        device=model.device,
        kept=Runnable(model, longest=max(lengths, default=0)).elements_kept(lengths),
        full=full,
        reached=reached,
        frozen_bytes=frozen_bytes,
        work=work,
    )


def estimate(
    shape: forecasting.ModelShape,
    lengths: Sequence[int],
    loss_tokens: int,
    spec: TrainSpec,
    *,
    steps: int,
    trainable: int,
    dtype: torch.dtype,
    device: torch.device,
    kept: float | None,
    full: bool = False,
    reached: float = 1.0,
    frozen_bytes: int | None = None,
    measured_tokens: int = 1024,
    work: OtherWork | None = None,
) -> RunEstimate:
    """Forecast the training of a model of this shape on rows of these lengths.

    Args:
        shape: of the base.
        lengths, loss_tokens: tokens of each row, and supervised ones among all of them.
        spec: the schedule.
        steps: optimizer steps.
        trainable, full, reached: as for `estimate_run`.
        dtype, device: of the base; the device's rates are measured.
        kept: elements for the backward pass of each token, None where blocks do not run fused.
        frozen_bytes: of the base, where it is packed.
        measured_tokens: of each product by which the rates are measured.
        work: what other processes do, looked at since before; else while the rates are measured.
    """
    work = work or OtherWork()
    rows, mean = min(spec.batch_size, len(lengths)), statistics.fmean(lengths)
    tokens_a_step = rows * mean
    # The largest step of a run lies about two standard deviations above the mean.
    largest_step = tokens_a_step + 2 * math.sqrt(rows) * statistics.pstdev(lengths, mean)
    rate = machine_rates.matmul_rate(shape, dtype, device, tokens=measured_tokens)
    elementwise = machine_rates.elementwise_rate(shape, dtype, device, tokens=measured_tokens)
    bytes_rate = machine_rates.memory_rate(device) if full else None
    busy = ""
    if device.type == "cpu":
        busy = said(work.cores(), os.cpu_count() or 1, torch.get_num_threads())

    def made(recompute: bool) -> forecasting.Forecast:
        return forecasting.forecast(
            shape,
            trainable,
            lengths,
            loss_tokens,
            epochs_tokens=int(steps * tokens_a_step),
            batch_tokens=int(min(max(spec.batch_tokens, max(lengths)), largest_step)),
            dtype=dtype,
            rate=rate,
            elementwise=elementwise,
            elements_kept=kept,
            recompute=recompute,
            full=full,
            steps=steps,
            bytes_rate=bytes_rate,
            reached=reached,
            frozen_bytes=frozen_bytes,
            moment_bytes=_moment_bytes(shape, trainable, spec, full=full),
        )

    if spec.activation_checkpointing != "auto":
        return RunEstimate(
            made(spec.activation_checkpointing), spec.activation_checkpointing, "", busy
        )
    plain, there = made(False), available_memory(device)
    if plain.peak_memory_bytes <= MEMORY_SHARE * there:
        return RunEstimate(plain, False, "", busy)
    less = made(True)
    return RunEstimate(
        less,
        True,
        f"activation checkpointing is on: without it {size(plain.peak_memory_bytes)} would be "
        f"needed of {size(there)}, with it {size(less.peak_memory_bytes)}; fewer "
        "--batch-tokens need less memory too",
        busy,
    )


def _moment_bytes(
    shape: forecasting.ModelShape, trainable: int, spec: TrainSpec, *, full: bool
) -> int:
    """Of AdamW's moments. In 8 bits embeddings keep 32; so do small tensors, which are not counted."""
    if spec.moments == "32bit":
        return 8 * trainable
    wide = min(trainable, shape.vocabulary * shape.width) if full else 0
    return int(8 * wide + BYTES_8BIT * (trainable - wide))
