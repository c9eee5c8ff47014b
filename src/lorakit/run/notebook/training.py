"""`lorakit.train` for Python and notebooks: the same training on a model you hold."""

from dataclasses import fields, replace
from typing import Any

from lorakit.adapters.asking import MAPPING
from lorakit.adapters.attached import loaded_info, remember_mapping, remember_template
from lorakit.config import RunConfig, load_config
from lorakit.data import Dataset, DataSpec, load_data
from lorakit.data.given import GIVEN_HELD_OUT, as_source
from lorakit.errors import ConfigError, did_you_mean
from lorakit.execution.lengths import context_length
from lorakit.forecast import reached_share
from lorakit.lora import lora_layers
from lorakit.lora.initialising import notes_of
from lorakit.run.against_parent import (
    ParentRows,
    against,
    measured,
    parent_rows,
    table_loss,
)
from lorakit.run.continuing import go_on
from lorakit.run.estimating import estimate_run
from lorakit.run.fitting import Report, batches_of, fit_model, peak_rate, steps_of
from lorakit.run.initialising import begin_from_rows
from lorakit.run.merge_aware import rounding, rounding_notes
from lorakit.run.notebook.given import template_of, with_attached
from lorakit.run.recorded import reading_rows
from lorakit.run.rehearsing import check_new_row_weight
from lorakit.run.remembering import is_trained, remember
from lorakit.run.session import recorded_template
from lorakit.tasks import CAUSAL_LM
from lorakit.training import FitResult, Observers, Schedule, TrainSpec


def train(
    model: Any,
    tokenizer: Any,
    data: Any,
    *,
    eval_data: Any = None,
    report: Report = lambda event: None,
    **options: Any,
) -> FitResult:
    """Train the adapter that is attached to a model, on rows in a file or in memory.

    Pairs that are trained already (loaded, or trained before) are gone on from as by `lorakit train
    --from`: with their moments, at a rate that a probe finds, and their state before the first step
    is the result where no step is better. Their mapping of rows, chat template and system text are the
    defaults.

    >>> import lorakit
    >>> model, tokenizer = lorakit.load_model("tiny-model")
    >>> plan = lorakit.attach(model, lorakit.LoraSpec(rank=2))
    >>> rows = [{"prompt": "say lamp", "completion": "pmal"}]
    >>> result = lorakit.train(model, tokenizer, rows, eval_share=0, max_steps=2)
    >>> result.steps
    2
    >>> folder = lorakit.save_adapter(model, "my-adapter")

    Args:
        model: a causal LM with something to train; without an adapter all that needs a gradient.
        tokenizer: of the model.
        data: a file, a folder or a hub id; or rows, read as they are: a list of mappings, a
            datasets.Dataset, a pandas.DataFrame.
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
    allowed = {
        str(f.metadata.get("name", f.name)) for spec in (DataSpec, TrainSpec) for f in fields(spec)
    }
    for name in options:
        if name not in allowed - {"data", "eval_data"}:
            raise ConfigError(f"train: unknown option {name!r}; {did_you_mean(name, allowed)}")
    going_on = is_trained(model)
    config, rows = _rows(model, tokenizer, load_config(None, options), data, eval_data)
    check_new_row_weight(config.train, going_on=going_on)
    steps = steps_of(len(rows.train), config.train)
    rows_of = batches_of(CAUSAL_LM, model, rows.train, config.train, steps)
    begun = begin_from_rows(model, rows_of, steps)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    full = not lora_layers(model) and all(p.requires_grad for p in model.parameters())
    targets = [layer.target for layer in lora_layers(model).values()]
    expected = estimate_run(
        *(model, rows.train, config.train),
        steps=steps,
        trainable=trainable,
        full=full,
        reached=reached_share(model, targets),
    )
    for note in (*begun, *_notes(model, expected.note, config.train)):
        report({"kind": "note", "text": note})
    if lora_layers(model):
        remember_template(model, rows.template.to_dict())
        remember_mapping(model, {name: getattr(config.data, name) for name in MAPPING})
    with rounding(model, config.train):
        if going_on:
            return _go_on(model, tokenizer, rows, steps, config.train, expected.recompute, report)
        return _begin(model, rows, steps, config.train, expected.recompute, report)


def _notes(model: Any, expected: str | None, spec: TrainSpec) -> tuple[str, ...]:
    """What is said before the first step."""
    layers = lora_layers(model).values()
    dropout = max((layer.dropout for layer in layers), default=0.0)
    targets = [layer.target for layer in layers]
    said = rounding_notes(model, targets, spec, dropout=dropout)
    return (*([expected] if expected else []), *notes_of(targets), *said)


def _rows(
    model: Any, tokenizer: Any, asked: RunConfig, data: Any, eval_data: Any
) -> tuple[RunConfig, Dataset]:
    """The rows, read as those were that the model's pairs were trained on, and the configuration with that."""
    going_on = is_trained(model)
    config = with_attached(asked, model) if going_on else asked
    held_out = () if eval_data is None else (as_source(eval_data, GIVEN_HELD_OUT),)
    with reading_rows(asked, config, "the adapter" if going_on else None):
        rows = load_data(
            replace(config.data, data=(as_source(data),), eval_data=held_out),
            tokenizer,
            seed=config.train.seed,
            context_length=context_length(model.config),
            embeddings=int(model.get_input_embeddings().weight.shape[0]),
            template=template_of(model, config.data) if going_on else None,
        )
    return config, rows


def _begin(
    model: Any, rows: Dataset, steps: int, spec: TrainSpec, recompute: bool, report: Report
) -> FitResult:
    """Train fresh pairs, or whatever needs a gradient."""
    rate = peak_rate(model, steps, spec, full=not lora_layers(model))
    fitted = fit_model(
        model,
        rows.train,
        rows.eval,
        Schedule(steps, rate, spec),
        recompute=recompute,
        observers=Observers(report=report),
        keep_moments=bool(lora_layers(model)),
    )
    remember(model, fitted, rows, steps, spec)
    outcome = against(None, fitted, len(rows.eval), None)
    return replace(fitted, notes=(*fitted.notes, *outcome.notes()))


def _go_on(
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    steps: int,
    spec: TrainSpec,
    recompute: bool,
    report: Report,
) -> FitResult:
    """Train pairs that are trained already."""
    own = _parents(model, tokenizer, rows)
    begins = go_on(
        model,
        rows,
        [table for table in (rows.eval, own.table) if table is not None],
        steps,
        spec,
        task=CAUSAL_LM,
        recompute=recompute,
        report=report,
    )
    before = table_loss(model, own.table, spec)
    fitted = fit_model(
        model,
        rows.train,
        rows.eval,
        begins.schedule,
        recompute=recompute,
        observers=Observers(report=report),
        moments=begins.moments,
        keep_moments=True,
        rehearsal=begins.rehearsing.rehearsal,
    )
    remember(model, fitted, rows, steps, spec, begins.rehearsing)
    parents = measured(own.table, before, table_loss(model, own.table, spec))
    parent = "its parent"
    outcome = against(parent, fitted, len(rows.eval), parents, own)
    return replace(fitted, notes=(*begins.notes, *fitted.notes, *outcome.notes()))


def _parents(model: Any, tokenizer: Any, rows: Dataset) -> ParentRows:
    """The held-out rows of the adapter that was loaded, where it records them, but for those of a run."""
    info = loaded_info(model)
    if info is None:
        return ParentRows(None)
    return parent_rows(
        info,
        lambda config: load_data(
            config.data,
            tokenizer,
            seed=config.train.seed,
            context_length=context_length(model.config),
            embeddings=int(model.get_input_embeddings().weight.shape[0]),
            template=recorded_template(info, None),
        ),
        rows.train_hashes,
    )
