"""Initialisations that begin from training rows: which rows are taken, and the pairs begun anew with them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from lorakit.data import Batch
from lorakit.errors import DataError, TargetError
from lorakit.execution.evidence import layer_inputs, weight_gradients
from lorakit.lora import LoraLinear, LoraSpec, Plan, Target, attach, detach, lora_layers
from lorakit.lora.init_rows import redistributed
from lorakit.lora.planning import beside

MOST_ROWS = 64
"""Rows that are looked at, in whole steps; more only where they have too few supervised tokens."""


def begin_from_rows(
    model: Any, batches_of: Callable[[int], Sequence[Batch]], steps: int
) -> tuple[str, ...]:
    """Begin pairs that wait for training rows, in place; nothing is done where none waits.

    The rows are those of the run's first steps, in the order in which it takes them.

    Args:
        model: with pairs attached.
        batches_of: the micro-batches of a step of the run.
        steps: of the run.

    Returns:
        Sentences for the user.

    Raises:
        DataError: the rows have too few supervised tokens.
        TargetError: no gradient reaches an adapted layer.
    """
    layers = lora_layers(model)
    specs = [layer.waits for layer in layers.values() if layer.waits is not None]
    if not specs:
        return ()
    spec = specs[0]
    how, targets = spec.initialisation, [layer.target for layer in layers.values()]
    rounded = {p: x.rounded for p, x in layers.items() if isinstance(x, LoraLinear)}
    training = model.training
    detach(model)
    if how.rows == "inputs":
        plan, evidence, note = _by_inputs(model, spec, targets, batches_of, steps)
    else:
        plan, evidence, note = _by_gradients(model, spec, targets, batches_of, steps)
    attach(model, plan, evidence=evidence)
    for path, layer in lora_layers(model).items():
        if isinstance(layer, LoraLinear):
            layer.rounded = rounded[path]
    model.train(training)
    return (note,)


def _rows(
    batches_of: Callable[[int], Sequence[Batch]], steps: int, tokens: int
) -> tuple[list[Batch], str]:
    """The first batches of a run, with more supervised tokens than asked for, and what they are in words."""
    batches = list[Batch]()
    rows = supervised = 0
    for step in range(steps):
        if rows >= MOST_ROWS and supervised > tokens:
            break
        for batch in batches_of(step):
            batches.append(batch)
            rows, supervised = rows + len(batch.rows_S), supervised + batch.token_count
    if supervised <= tokens:
        raise DataError(
            f"init eva: the run's rows have {supervised} supervised tokens, and {tokens + 1} are needed for "
            "the directions of its ranks; lower rank or eva_rho, or give more rows"
        )
    return batches, f"the {rows} rows of its first steps ({supervised} supervised tokens)"


def _by_inputs(
    model: Any,
    spec: LoraSpec,
    targets: Sequence[Target],
    batches_of: Callable[[int], Sequence[Batch]],
    steps: int,
) -> tuple[Plan, dict[str, Tensor], str]:
    """Ranks by what directions explain, and A's directions."""
    ranks = {target.path: target.rank for target in targets}
    most = {t.path: min(round(spec.eva_rho * t.rank), t.geometry.largest_rank()) for t in targets}
    batches, words = _rows(batches_of, steps, max(most.values()))
    found = layer_inputs(model, most, batches)
    explained = {path: tuple(found.directions[path][1][: most[path]].tolist()) for path in ranks}
    given = ranks if spec.eva_rho == 1 else redistributed(explained, ranks, found.same)
    kept = [_with_rank(spec, t, given[t.path]) for t in targets if given[t.path]]
    plan = _plan(model, _spec_of(spec, kept), kept)
    evidence = {t.path: found.directions[t.path][0][: t.rank] for t in kept}
    least, largest = min(t.rank for t in kept), max(t.rank for t in kept)
    gone = len(targets) - len(kept)
    left = f", and {gone} modules have none" if gone else ""
    note = f"init eva: A is from {words}; ranks are {least} to {largest}{left}"
    return plan, evidence, note


def _by_gradients(
    model: Any,
    spec: LoraSpec,
    targets: Sequence[Target],
    batches_of: Callable[[int], Sequence[Batch]],
    steps: int,
) -> tuple[Plan, dict[str, Tensor], str]:
    """The targets as they are, and the gradients of their weights."""
    batches, words = _rows(batches_of, steps, 0)
    gradients = weight_gradients(model, [target.path for target in targets], batches)
    if lost := [target.path for target in targets if target.path not in gradients]:
        raise TargetError(
            f"init {spec.init}: no gradient reaches {lost[0]}; leave it out, or take another init"
        )
    plan = _plan(model, spec, targets)
    return plan, gradients, f"init {spec.init}: A and B are from the gradient of {words}"


def _plan(model: Any, spec: LoraSpec, targets: Sequence[Target]) -> Plan:
    """These targets, and what the spec trains beside them."""
    total = sum(p.numel() for p in model.parameters())
    return Plan(spec, tuple(targets), (), total, beside(model, spec, targets))


def _with_rank(spec: LoraSpec, target: Target, rank: int) -> Target:
    """The target at another rank and the same scale."""
    if rank == target.rank:
        return target
    alpha = target.alpha * spec.variant.scale(1.0, target.rank) / spec.variant.scale(1.0, rank)
    return replace(target, rank=rank, alpha=alpha, scale=spec.variant.scale(alpha, rank))


def _spec_of(spec: LoraSpec, targets: Sequence[Target]) -> LoraSpec:
    """The spec of targets that each have a rank of their own."""
    ranks = {f"^{re.escape(t.path)}": t.rank for t in targets if t.rank != spec.rank}
    alphas = {f"^{re.escape(t.path)}": t.alpha for t in targets if t.alpha != spec.alpha}
    return replace(spec, rank_pattern=ranks, alpha_pattern=alphas)
