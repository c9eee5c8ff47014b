"""The profile of a search: what ranks cost, and what the base makes of the rows.

**The prior.** Bits of the training completions under the base, Σ -log2 p(token), are about what
there is to learn; a parameter is said to hold about two bits (Allen-Zhu and Li, arXiv 2404.05405).
Their quotient is printed and decides nothing: most of those bits are noise that no adapter learns.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from lorakit.errors import ConfigError, DataError, TargetError
from lorakit.experiments import Report
from lorakit.experiments.kinds import typed
from lorakit.experiments.measuring import measure_rows, spread_rows
from lorakit.experiments.opening import open_trial
from lorakit.experiments.profile import estimate_step, profile_of
from lorakit.experiments.stamps import Sources
from lorakit.forecast import reached_share
from lorakit.lora import LoraSpec, Plan, plan
from lorakit.ranking.trials import EVALUATION_TOKENS, Prior, RankProfile, RankProfileRequest
from lorakit.run.fitting import steps_of
from lorakit.training import check_can_share

BITS_A_PARAMETER = 2.0
# The prior decides nothing: it is to cost little.
_MOST_PRIOR_ROWS = 32
# Fewer held-out rows than this are not worth an interval, and tell learning rates apart, which
# differ by more than ranks do.
LEAST_ROWS = 32


def _plans(model: nn.Module, spec: LoraSpec, ranks: Sequence[int]) -> list[Plan]:
    """The plan of each rank, the highest first seen to fit every module.

    Raises:
        ConfigError: a rank does not fit one.
    """
    try:
        plan(model, replace(spec, rank=max(ranks)))
    except TargetError as error:
        which = str(error).partition(": lower rank")[0]
        highest = _highest(model, spec)
        raise ConfigError(
            f"{which}: give --max-rank {highest}, or leave such modules out with --exclude"
        ) from None
    return [plan(model, replace(spec, rank=rank)) for rank in ranks]


def _highest(model: nn.Module, spec: LoraSpec) -> int:
    """The highest rank that fits every module whose rank no pattern says."""
    narrow = plan(model, replace(spec, rank=1))
    for side in sorted({t.geometry.largest_rank() for t in narrow.targets}, reverse=True):
        with contextlib.suppress(TargetError):
            plan(model, replace(spec, rank=side))
            return side
    return 1


@typed(RankProfileRequest)
def profile(
    request: RankProfileRequest, sources: Sources, folder: Path, report: Report
) -> RankProfile:
    """Find out rows, base, steps, FLOPs, and the prior.

    Args:
        request: what is asked for.
        sources: of rows and base.
        folder: of the trial; nothing is written.
        report: told of the stages.

    Raises:
        InputError: a rank does not fit a module, the model's runs cannot share a pass, or fewer
            than two rows are held out.
    """
    context = open_trial(request.stamp, sources)
    model, config = context.model, context.config.train
    rows, held_out = context.data.train, context.data.eval
    if len(held_out) < 2:
        raise DataError(
            "one row is held out, and ranks are compared over several: give --eval-data, or a larger "
            "--eval-share"
        )
    plans = _plans(model, context.config.lora, request.ranks)
    check_can_share(model)
    estimate = estimate_step(
        *(model, rows, config, sum(each.trainable for each in plans)),
        concurrent=request.concurrent,
        reached=reached_share(model, plans[-1].targets),
    )
    report({"kind": "stage", "name": "measure"})
    measured = spread_rows(held_out, early_rows(len(held_out)))
    some = spread_rows(rows, _MOST_PRIOR_ROWS)
    base = measure_rows(model, measured, EVALUATION_TOKENS)
    completions = measure_rows(model, some, EVALUATION_TOKENS)
    bits = float(np.sum(completions.nats)) / math.log(2) * len(rows) / len(some)
    of_one = plans[0].trainable // request.ranks[0]
    return RankProfile(
        profile=profile_of(context, rows),
        steps=steps_of(len(rows), config),
        estimate=estimate,
        trainable={str(r): p.trainable for r, p in zip(request.ranks, plans, strict=True)},
        base_loss=base.loss,
        base_rows=len(measured),
        base_tokens=measured.tokens,
        prior_tokens=some.tokens,
        prior=Prior(bits, len(some), BITS_A_PARAMETER, of_one, bits / BITS_A_PARAMETER / of_one),
    )


def early_rows(rows: int) -> int:
    """Of so many held-out rows, those that are measured before the end of a run: half of them.

    >>> early_rows(200), early_rows(40), early_rows(20)
    (100, 32, 20)
    """
    return min(rows, max(LEAST_ROWS, math.ceil(rows / 2)))
