"""`lorakit eval`: rows and a model or adapter -> loss and scores."""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorakit.config import RunConfig
from lorakit.data import Example, check_sources
from lorakit.data.notes import length_notes
from lorakit.data.sources import measuring_notes
from lorakit.errors import DataError
from lorakit.evaluation.metrics import check_names
from lorakit.files.cache import Progress, no_progress
from lorakit.files.whole import write_json, write_text
from lorakit.run import folder as folders
from lorakit.run.machine import machine, peak_memory, versions
from lorakit.run.recorded import with_recorded
from lorakit.run.session import Session, open_adapted
from lorakit.training import held_out_loss


def run_evaluation(
    config: RunConfig,
    *,
    adapter: str | Path | None,
    metrics: str,
    out: Path | None,
    force: bool = False,
    progress: Progress = no_progress,
    session: Session | None = None,
) -> dict[str, Any]:
    """Measure on every row of `config.data.data` and return what `result.json` holds.

    Args:
        config: model, rows and limits; what was not given is taken from the adapter's record.
        adapter: a folder or a name in the store `config.output.store`, or None for the base.
        metrics: 'auto', 'none', or names with commas between.
        force: use the adapter although it was trained on another base.
        progress: told of a download of the built-in model.
        session: a model that is loaded already, in place of `config.model` and `adapter`.
        out: folder for `result.json` and `answers.jsonl`, which must be empty; None writes none.

    Raises:
        InputError: something given cannot be used.
    """
    started = time.perf_counter()
    if not config.data.data:
        raise DataError("no rows: give --data")
    check_sources(config.data.data)
    chosen = metrics if metrics in ("auto", "none") else check_names(metrics.split(","))
    if out is not None:
        folders.check_folder(out, resume=False)
    if session is None:
        config = with_recorded(config, adapter)
    session = session or open_adapted(
        config.model,
        adapter,
        config.data,
        store=config.output.store,
        force=force,
        progress=progress,
    )
    task, device = session.task, session.model.device
    table, examples, report = task.rows_to_measure(config.data, session)
    batches = task.batches(table, range(len(table)), config.train.batch_tokens, device)
    loss = held_out_loss(batches, task.loss(session.model))
    scores: dict[str, float] = {}
    notes = measuring_notes(config.data.data) + length_notes(report, "rows", config.data.too_long)
    answered = task.examples(examples)
    predictions: list[str] = []
    if metrics != "none" and answered:
        predictions = task.predict(session, answered, config.output.max_new_tokens)
        scored = task.measure(answered, predictions, chosen)
        scores = {metric.name: metric.value for metric in scored.metrics}
        notes += [scored.why, *([scored.left_out] if scored.left_out else [])]
    result = {
        "model": session.identity.name,
        "adapter": str(adapter) if adapter else None,
        "eval_loss": loss,
        "perplexity": math.exp(loss),
        "scores": scores,
        "rows": len(table),
        "tokens": table.tokens,
        "loss_tokens": table.loss_tokens,
        "peak_memory_bytes": peak_memory(device),
        "seconds": time.perf_counter() - started,
        "template": session.template.to_dict(),
        "data_sha256": content_hash(examples),
        "versions": versions(),
        "machine": machine(device),
        "notes": notes,
    }
    if out is not None:
        folders.make_folder(out)
        lines = (
            {"prompt": e.question, "reference": e.answer, "answer": a, "origin": e.origin}
            for e, a in zip(answered, predictions, strict=False)
        )
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(out / "answers.jsonl", text)
        write_json(out / folders.RESULT, result)
    return result


def content_hash(examples: Sequence[Example]) -> str:
    """SHA-256 of the content of rows in their order, whatever file they came from."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(hashlib.sha256(example.canonical()).digest())
    return digest.hexdigest()
