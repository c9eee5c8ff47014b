"""`lorakit check` of a configuration alone: would this model train here? No weight is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lorakit import forecast as forecasting
from lorakit.config import RunConfig
from lorakit.data import TokenTable, load_data
from lorakit.errors import ConfigError, ModelError
from lorakit.execution.lengths import context_length
from lorakit.execution.outline import outline_elements_kept
from lorakit.lora import Plan, plan
from lorakit.models import empty_model, load_tokenizer
from lorakit.models.devices import torch_device, torch_dtype
from lorakit.models.kept_packed import bytes_kept
from lorakit.models.packable import bytes_held, bytes_unpacked
from lorakit.models.spec import BASE_DTYPES, FORMATS, FULL, PACKED
from lorakit.run.estimating import RunEstimate, estimate
from lorakit.run.fitting import peak_rate, steps_of
from lorakit.run.machine import available_memory

ROWS, ROW_TOKENS = 1000, 512
# Operations of one product in a measurement of this machine's rate: about a second each.
_PRODUCT = 5e10


@dataclass(frozen=True)
class Outline:
    """What a run would need.

    Attributes:
        plan: what would be adapted, of which parameters.
        rows, tokens: training rows, and their tokens.
        steps: optimizer steps.
        learning_rate: the peak, 'auto' resolved.
        estimate: memory and time.
        dtype, device: of the base.
        available: bytes of memory that this process may have here.
        notes: where the rows come from.
        weights_bytes: the base alone, as it would be held.
        base_dtype: how it would be held.
        by_base_dtype: the forecast of memory by how the base is held.
        unpacked: bytes of what no format packs, by what it is; empty where nothing is packed here.
    """

    plan: Plan
    rows: int
    tokens: int
    steps: int
    learning_rate: float
    estimate: RunEstimate
    dtype: torch.dtype
    device: torch.device
    available: int
    notes: tuple[str, ...]
    weights_bytes: int
    base_dtype: str
    by_base_dtype: Mapping[str, int]
    unpacked: Mapping[str, int]

    @property
    def fits(self) -> bool:
        """Whether the forecast is below the memory that is there."""
        return self.estimate.forecast.peak_memory_bytes <= self.available


def outline(config: RunConfig, *, rows: int | None, row_tokens: int | None) -> Outline:
    """Forecast a run from the configuration of its model.

    Args:
        config: the run. Its rows are read, if there are any, with the model's tokenizer.
        rows, row_tokens: training rows and the tokens of each, where `config` names no rows.

    Raises:
        ConfigError: rows are named and counted; a count is below 1.
        ModelError: there is no configuration of a causal language model.
        DataError: a row cannot be read.
    """
    device, dtype = torch_device(config.model), torch_dtype(config.model)
    model = empty_model(config.model)
    chosen = plan(model, replace(config.lora, train_tokens=()))
    lengths, loss_tokens, notes = _rows(config, model, rows, row_tokens)
    shape = forecasting.shape_of(model)
    steps = steps_of(len(lengths), config.train)
    largest = max(out * width for out, width, _ in shape.shapes)
    tokens = max(32, min(1024, int(_PRODUCT / (4 * largest))))
    held = {name: bytes_held(model, name) for name in BASE_DTYPES}
    base_dtype, kept = config.model.base_dtype, bytes_kept(model, config.model)
    if kept is not None:  # as its files pack it, which is all that there is of a quantized folder
        held = {PACKED: kept} if base_dtype == FULL else {**held, PACKED: kept}
        base_dtype = PACKED
    chosen_bytes = held.get(base_dtype)
    if chosen_bytes is None:
        raise ModelError(
            f"no layer of {type(model).__name__} can be held in {config.model.base_dtype}: leave "
            "--base-dtype out"
        )
    expected = estimate(
        shape,
        lengths,
        loss_tokens,
        config.train,
        steps=steps,
        trainable=chosen.held,
        reached=forecasting.reached_share(model, chosen.targets),
        dtype=dtype,
        device=device,
        kept=outline_elements_kept(model, lengths, dtype, device),
        measured_tokens=tokens,
        frozen_bytes=chosen_bytes,
    )
    rest = expected.forecast.peak_memory_bytes - chosen_bytes
    return Outline(
        chosen,
        len(lengths),
        sum(lengths),
        steps,
        peak_rate(model, steps, config.train),
        expected,
        dtype,
        device,
        available_memory(device),
        tuple(notes),
        chosen_bytes,
        base_dtype,
        {name: rest + size for name, size in held.items() if size is not None},
        bytes_unpacked(model) if base_dtype in FORMATS else {},
    )


def _rows(
    config: RunConfig, model: Any, rows: int | None, row_tokens: int | None
) -> tuple[Sequence[int], int, Sequence[str]]:
    """Tokens of each training row, supervised tokens, and what is to be said of them."""
    if config.data.data:
        if rows is not None or row_tokens is not None:
            raise ConfigError("--rows and --row-tokens stand for rows that --data names: give one")
        table, notes = _read(config, model)
        return table.lengths.tolist(), table.loss_tokens, notes
    rows, row_tokens = (
        ROWS if rows is None else rows,
        ROW_TOKENS if row_tokens is None else row_tokens,
    )
    if rows < 1 or row_tokens < 1:
        raise ConfigError("--rows and --row-tokens must be at least 1")
    note = (
        f"no --data: {rows:,} rows of {row_tokens:,} tokens are taken, every token supervised "
        "(--rows, --row-tokens)"
    )
    return [row_tokens] * rows, rows * row_tokens, [note]


def _read(config: RunConfig, model: Any) -> tuple[TokenTable, Sequence[str]]:
    tokenizer = load_tokenizer(config.model)
    limit = context_length(model.config)
    data = load_data(config.data, tokenizer, seed=config.train.seed, context_length=limit)
    return data.train, data.notes
