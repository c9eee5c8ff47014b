"""The first trial of a search: what is there, what ranks cost, and what the base says of the rows.

**The prior.** Bits of the training completions under the base, Σ -log2 p(token), are about what
there is to learn; a parameter is said to hold about two bits (Allen-Zhu and Li, arXiv 2404.05405).
Their quotient is printed and decides nothing: most of those bits are noise that no adapter learns.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.data import TokenTable
from lorakit.evaluation.likelihood import per_token, row_losses
from lorakit.execution.packed import packed_attention
from lorakit.experiments import Report
from lorakit.experiments.opening import base_hash, open_run
from lorakit.forecast import ModelShape, flops_per_token, shape_of
from lorakit.lora import plan
from lorakit.run.fitting import outlook, peak_rate, steps_of
from lorakit.run.machine import machine, versions
from lorakit.training import fused_blocks, make_joint_loss

BITS_A_PARAMETER = 2.0
# The prior decides nothing: it is to cost little.
_MOST_PRIOR_ROWS = 32
_EVALUATION_TOKENS = 1024
# Fewer held-out rows than this are not worth an interval, and tell learning rates apart, which
# differ by more than ranks do.
LEAST_ROWS = 32


def look(
    spec: Mapping[str, Any], where: Mapping[str, Any], folder: Path, report: Report
) -> dict[str, Any]:
    """Rows, base, steps, rates by rule, FLOPs, and the prior.

    Args:
        spec: "config"; "ranks", rising; "together", how many runs a trial may hold.
        where: places.
        folder: of the trial; nothing is written.
        report: told of the stages.

    Raises:
        InputError: a rank does not fit a module, or the model's runs cannot share a pass.
    """
    opened = open_run(spec, where)
    session, rows, held = opened.session, opened.data.train, opened.data.eval
    model, config, ranks = session.model, opened.config.train, spec["ranks"]
    plans = [plan(model, replace(opened.config.lora, rank=rank)) for rank in ranks]
    make_joint_loss(model)  # refuses what cannot be trained together
    steps = steps_of(len(rows), config)
    expected = outlook(
        model,
        rows,
        replace(config, batch_size=config.batch_size * spec["together"]),
        steps=1,
        trainable=sum(each.trainable for each in plans),
    )
    report({"kind": "stage", "name": "measure"})
    some = spread(rows, _MOST_PRIOR_ROWS)
    judged = spread(held, early_rows(len(held)))
    with packed_attention(model), fused_blocks(model):
        base_nats, base_tokens = row_losses(model, judged, _EVALUATION_TOKENS)
        prior_nats, _ = row_losses(model, some, _EVALUATION_TOKENS)
    bits = float(prior_nats.sum()) / math.log(2) * len(rows) / len(some)
    of_one = plans[0].trainable // ranks[0]
    batch = min(config.batch_size, len(rows))
    return {
        "data_sha256": opened.data.data_sha256,
        "base": base_hash(session),
        "identity": session.identity.to_dict(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "rows": len(rows),
        "eval_rows": len(held),
        "tokens_per_step": batch * float(rows.lengths.mean()),
        "eval_tokens": held.tokens,
        "template": session.template.to_dict(),
        "notes": list(opened.data.notes),
        "steps": steps,
        "rate_by_rule": {
            "short": peak_rate(model, 50, replace(config, learning_rate="auto")),
            "long": peak_rate(model, 1000, replace(config, learning_rate="auto")),
        },
        "recompute": expected.recompute,
        "note": expected.note,
        "peak_memory_bytes": expected.forecast.peak_memory_bytes,
        "trainable": {str(rank): each.trainable for rank, each in zip(ranks, plans, strict=True)},
        "modules": len(plans[0].targets),
        "base_loss": per_token(base_nats, base_tokens),
        "base_rows": len(judged),
        "base_tokens": judged.tokens,
        "prior": {
            "bits": bits,
            "rows": len(some),
            "bits_a_parameter": BITS_A_PARAMETER,
            "parameters_of_rank_1": of_one,
            "rank": bits / BITS_A_PARAMETER / of_one,
        },
        "shape": asdict(shape_of(model)),
        "mean_length": _mean(rows.lengths),
        "loss_share": rows.loss_tokens / rows.tokens,
        "eval_mean_length": _mean(held.lengths),
        "eval_loss_share": held.loss_tokens / held.tokens,
        "prior_tokens": some.tokens,
        "versions": versions(),
        "measured": {
            "machine": machine(model.device),
            "seconds_per_step": expected.forecast.seconds / spec["together"],
        },
    }


def early_rows(rows: int) -> int:
    """Of so many held-out rows, those that are measured before the end of a run: half of them.

    >>> early_rows(200), early_rows(40), early_rows(20)
    (100, 32, 20)
    """
    return min(rows, max(LEAST_ROWS, math.ceil(rows / 2)))


def spread(table: TokenTable, rows: int) -> TokenTable:
    """So many rows, spread evenly over all."""
    if rows >= len(table):
        return table
    return table.take(np.arange(rows) * len(table) // rows)


def _mean(lengths: Any) -> float:
    """Mean length of a sequence, weighted by token: Σ s² / Σ s."""
    return float((lengths.astype(float) ** 2).sum() / lengths.sum())


def training_flops(found: Mapping[str, Any], trainable: int, tokens: float) -> float:
    """FLOPs of training on so many tokens with so many parameters of an adapter."""
    shape = _shape(found)
    return tokens * flops_per_token(shape, trainable, found["mean_length"], found["loss_share"])


def evaluation_flops(found: Mapping[str, Any], trainable: int, tokens: float) -> float:
    """FLOPs of measuring so many held-out tokens: 2 N + 2 P r + 2 s d L + 2 H c each."""
    shape = _shape(found)
    attention = 2 * found["eval_mean_length"] * shape.width * shape.layers
    head = 2 * shape.head_parameters * found["eval_loss_share"]
    return tokens * (2 * shape.block_parameters + 2 * trainable + attention + head)


def _shape(found: Mapping[str, Any]) -> ModelShape:
    given = dict(found["shape"])
    given["shapes"] = tuple(tuple(each) for each in given["shapes"])
    return ModelShape(**given)
