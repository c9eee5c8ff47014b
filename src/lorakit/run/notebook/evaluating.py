"""`lorakit.evaluate` for Python and notebooks."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lorakit.data.given import as_source
from lorakit.errors import ConfigError
from lorakit.execution.choices import read_choices
from lorakit.run.commands.evaluation import run_evaluation
from lorakit.run.notebook.given import BASE, ROWS, Base, config_of, session_of, with_attached

_OPTIONS = (*BASE, *ROWS, "batch_tokens", "max_new_tokens", "store")


def evaluate(
    model: Base | None,
    data: Any,
    *,
    tokenizer: Any = None,
    adapter: str | Path | None = None,
    metrics: str = "auto",
    choices: Sequence[str] = (),
    record: bool = False,
    out: str | Path | None = None,
    force: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Measure a model or an adapter on rows: loss, perplexity, and scores of greedy answers.

    >>> import lorakit
    >>> rows = [{"prompt": "say lamp", "completion": "pmal"}]
    >>> result = lorakit.evaluate("tiny-model", rows, metrics="exact_match", max_new_tokens=4)
    >>> result["rows"], sorted(result["scores"])
    (1, ['exact_match'])

    Args:
        model: a name, a folder or a `ModelSpec`; or a loaded model, with or without pairs. None takes
            the base that the adapter records.
        data: a file, a folder or a hub id; or rows: a list of mappings, a datasets.Dataset, a
            pandas.DataFrame.
        tokenizer: of a loaded model.
        adapter: a folder or a name in the store, where `model` is not loaded yet.
        metrics: 'auto' (by the answers), 'none' (loss only), or names with commas between.
        choices: labels whose likelihood as the answer is measured; by default the reference
            answers, where they are few short labels.
        record: keep the scores with the adapter.
        out: a folder for result.json and answers.jsonl, which must be empty; None writes none.
        force: use the adapter although it was trained on another base.
        **options: any option of `lorakit eval`, such as prompt, completion, max_rows. What the
            adapter recorded of its rows is used where nothing else is given.

    Returns:
        What result.json holds; losses in nats per supervised token.

    Raises:
        InputError: an option is unknown, or the rows cannot be used.
    """
    config = config_of("evaluate", model, options, _OPTIONS)
    config = replace(config, data=replace(config.data, data=(as_source(data),)))
    session = None
    if isinstance(model, nn.Module):
        if adapter is not None:
            raise ConfigError("evaluate: attach the adapter with lorakit.load_adapter(model, …)")
        session = session_of(model, tokenizer, config.data)
        config = with_attached(config, model)
    return run_evaluation(
        config,
        adapter=adapter,
        metrics=metrics,
        choices=read_choices(choices) if choices else (),
        record=record,
        out=None if out is None else Path(out),
        force=force,
        session=session,
    )
