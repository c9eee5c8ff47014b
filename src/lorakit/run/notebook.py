"""`lorakit.train` for Python and notebooks: the same training on a model you hold."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lorakit.config import load_config
from lorakit.data import DataSpec, load_data
from lorakit.errors import ConfigError, did_you_mean
from lorakit.lora import lora_layers
from lorakit.run.fitting import Report, fit_model, outlook, peak_rate, steps_of
from lorakit.training import FitResult, Observers, Schedule, TrainSpec

Rows = str | Path | Sequence[Mapping[str, Any]]


def train(
    model: Any,
    tokenizer: Any,
    data: Rows,
    *,
    eval_data: Rows | None = None,
    report: Report = lambda event: None,
    **options: Any,
) -> FitResult:
    """Train the adapter that is attached to a model, on a file of rows or a list of mappings.

    >>> model, tokenizer = lorakit.load_model("smollm2-135m")        # doctest: +SKIP
    >>> lorakit.attach(model, lorakit.LoraSpec(rank=8))              # doctest: +SKIP
    >>> lorakit.train(model, tokenizer, "rows.jsonl", epochs=1)      # doctest: +SKIP
    >>> lorakit.save_adapter(model, "my-adapter")                    # doctest: +SKIP

    Args:
        model: a causal LM with something to train; without an adapter all that needs a gradient.
        tokenizer: of the model.
        data: a file, folder or hub id, or the rows themselves.
        eval_data: held-out rows in the same forms.
        report: called with one flat mapping after each step and evaluation.
        **options: any option of `lorakit train` about rows or training, such as prompt,
            completion, epochs, learning_rate, batch_size, seed.

    Returns:
        Losses in nats per supervised token, tokens, seconds; the best parameters are in the
        model.

    Raises:
        InputError: an option is unknown, or the rows cannot be used.
        DivergedError: the loss stopped being finite.
    """
    allowed = {f.name for spec in (DataSpec, TrainSpec) for f in fields(spec)}
    for name in options:
        if name not in allowed - {"data", "eval_data"}:
            raise ConfigError(f"train: unknown option {name!r}; {did_you_mean(name, allowed)}")
    with tempfile.TemporaryDirectory() as scratch:
        sources = {"data": (_as_source(data, Path(scratch) / "rows.jsonl"),)}
        if eval_data is not None:
            sources["eval_data"] = (_as_source(eval_data, Path(scratch) / "held_out.jsonl"),)
        config = load_config(None, {**options, **sources})
        rows = load_data(
            config.data,
            tokenizer,
            seed=config.train.seed,
            context_length=int(model.config.get_text_config().max_position_embeddings),
        )
    steps = steps_of(len(rows.train), config.train)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    full = not lora_layers(model) and all(p.requires_grad for p in model.parameters())
    expected = outlook(model, rows.train, config.train, steps=steps, trainable=trainable, full=full)
    if expected.note:
        report({"kind": "note", "text": expected.note})
    return fit_model(
        model,
        rows.train,
        rows.eval,
        Schedule(
            steps, peak_rate(model, steps, config.train, full=not lora_layers(model)), config.train
        ),
        recompute=expected.recompute,
        observers=Observers(report=report),
    )


def _as_source(rows: Rows, file: Path) -> str:
    if isinstance(rows, str | Path):
        return str(rows)
    file.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")
    return str(file)
