"""Trials without training: what a comparison will need, and what the base itself does."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.comparing import general
from lorakit.comparing.methods import Method, trained_parameters
from lorakit.evaluation.forgetting import forgetting, reference
from lorakit.evaluation.likelihood import per_token, row_losses
from lorakit.execution.packed import packed_attention
from lorakit.experiments import Report
from lorakit.experiments.opening import base_hash, open_run
from lorakit.forecast import shape_of
from lorakit.run import answers
from lorakit.run.fitting import outlook, peak_rate
from lorakit.run.machine import machine, peak_memory, versions
from lorakit.training import fused_blocks

REFERENCE = "general.npz"


def look(
    spec: Mapping[str, Any], where: Mapping[str, Any], folder: Path, report: Report
) -> dict[str, Any]:
    """What is there, and what every arm will need: rows, rates by rule, memory and time of a step.

    Args:
        spec: "config"; "methods", what the arms train; "steps", of a run as far as it is known,
            for the rule of learning rates.
        where: places, and "general_data".
        folder: of the trial; nothing is written.
        report: told of the stages.
    """
    started = time.perf_counter()
    opened = open_run(spec, where)
    session, train = opened.session, opened.train
    model, config = session.model, opened.config.train
    rows = min(config.batch_size, len(train))
    forecasts: list[dict[str, Any]] = []
    for each in spec["methods"]:
        method = Method.from_dict(each)
        full = method.kind == "full"
        trained = trained_parameters(model, method)
        expected = outlook(model, train, config, steps=1, trainable=trained, full=full)
        forecasts.append(
            {
                "trainable_parameters": trained,
                "seconds_per_step": expected.forecast.seconds,
                "peak_memory_bytes": expected.forecast.peak_memory_bytes,
                "recompute": expected.recompute,
                "note": expected.note,
                "rate_by_rule": {
                    # Below and from 100 steps on the rule differs.
                    "short": peak_rate(model, 50, config, full=full),
                    "long": peak_rate(model, 1000, config, full=full),
                },
            }
        )
    shape = shape_of(model)
    # A forward pass is about half of a step of an adapter, which is the shortest of the arms.
    step = min(each["seconds_per_step"] for each in forecasts)
    forward = 0.5 * step / (rows * float(train.lengths.mean()))
    return {
        "data_sha256": opened.data.data_sha256,
        "base": base_hash(session),
        "identity": session.identity.to_dict(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "total_parameters": shape.total_parameters,
        "rows": len(train),
        "tuning_rows": len(opened.tuning),
        "eval_rows": len(opened.data.eval),
        "askable": len(answers.pick(opened.data.eval_examples, len(opened.data.eval))),
        "tokens": train.tokens,
        "tokens_per_step": rows * float(train.lengths.mean()),
        "eval_tokens": opened.data.eval.tokens,
        "tuning_tokens": opened.tuning.tokens,
        "template": session.template.to_dict(),
        "general_sha256": general.content_hash(where["general_data"], opened),
        "notes": list(opened.data.notes),
        "forecasts": forecasts,
        "seconds_per_eval_token": forward,
        "versions": versions(),
        "machine": machine(model.device),
        "seconds": time.perf_counter() - started,
    }


def base(
    spec: Mapping[str, Any], where: Mapping[str, Any], folder: Path, report: Report
) -> dict[str, Any]:
    """What the base does before any training: held-out loss, answers, and the general rows.

    Leaves `general.npz`, its next-token distributions on the general rows.

    Args:
        spec: "config" and hashes; "samples" and "max_new_tokens" of the answers;
            "general_tokens", the longest of its own answers to the general prompts.
        where: places, and "general_data".
        folder: of the trial.
        report: told of the stages.
    """
    opened = open_run(spec, where)
    session, held = opened.session, opened.data.eval
    model, tokens = session.model, opened.config.train.batch_tokens
    report({"kind": "stage", "name": "general"})
    rows = general.rows(where["general_data"], opened, spec["general_tokens"])
    with packed_attention(model), fused_blocks(model):
        report({"kind": "stage", "name": "measure"})
        kept = reference(model, rows.table, tokens)
        itself = forgetting(model, kept, tokens)
        nats, count = row_losses(model, held, tokens)
    kept.save(folder / REFERENCE)
    report({"kind": "stage", "name": "answer"})
    asked = answers.pick(opened.data.eval_examples, spec["samples"])
    made = answers.ask(session, asked, spec["max_new_tokens"])
    scores = answers.score_answers(asked, made, "auto") if made else None
    return {
        "loss": per_token(nats, count),
        "rows": nats.tolist(),
        "row_tokens": count.tolist(),
        "prompts": [example.question for example in asked],
        "references": [str(example.answer).strip() for example in asked],
        "answers": made,
        "scores": scores.to_dict() if scores else None,
        "general": {
            "source": rows.source,
            "rows": len(rows.table),
            "tokens": int(itself.tokens_S.sum()),
            "mass": kept.mass,
            "words": kept.words_NK.shape[1],
            "loss": per_token(itself.loss_S, itself.tokens_S),
            "kl": per_token(itself.kl_S, itself.tokens_S),
            "texts": rows.texts,
        },
        "measured": {"peak_memory_bytes": peak_memory(model.device)},
    }
