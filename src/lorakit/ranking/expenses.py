"""What a search costs at most, and whether its runs are long enough for one: before anything is trained.

A search rests on short runs (`probe_share` of a run), which choose the learning rate and say how much a
seed matters, and on looks at unfinished runs. In the first step B is 0, so that A has no gradient: a short
run of one step trains B alone, and says little of either. The shortest runs for which searches were held
against an exhaustive grid have 45 steps (docs/rank.md); `LEAST_STEPS` is where short runs of the default
share have two steps. Fewer held-out rows than `LEAST_ROWS` have no interval (`evaluation.verdict`).
"""

import math
from dataclasses import dataclass

from lorakit.config import RunConfig
from lorakit.errors import ConfigError, DataError
from lorakit.evaluation.verdict import LEAST_ROWS
from lorakit.ranking.profile import LEAST_ROWS as SHORT_RUN_ROWS
from lorakit.ranking.profile import early_rows
from lorakit.ranking.spec import RankSpec
from lorakit.ranking.trials import RankProfile

LEAST_STEPS, LEAST_SHORT_STEPS = 40, 2
_BUDGET = 2.5


@dataclass(frozen=True)
class Expenses:
    """What a search will cost, in runs at the highest rank, measuring included.

    Attributes:
        before: base, probe and seed noise, at most.
        required: what the lowest and the highest rank need to be compared on every rung, `before` among
            it, at most.
        most: the search, at most.
        checks: what was asked for besides, at most.
        short: why no word may be said of this search, as what would do; empty where it is long enough.
    """

    before: float
    required: float
    most: float
    checks: float
    short: tuple[str, ...]


def expenses_of(spec: RankSpec, config: RunConfig, profile: RankProfile) -> Expenses:
    """What a search costs at most.

    Raises:
        DataError: the runs are too short or the held-out rows too few, and `allow_short` is not set.
        ConfigError: the budget is below what the lowest and the highest rank need.
    """
    short = too_short(spec, config, profile)
    if short and not spec.allow_short:
        raise DataError(
            f"too short for a search: {' and '.join(_why(spec, profile))}. Give "
            f"{' and '.join(short)}. Or --allow-short, which searches and says nothing of any rank"
        )
    before, whole = _before(spec, config, profile), _measuring(profile, 1.0)
    early = _measuring(profile, early_rows(profile.profile.eval_rows) / profile.profile.eval_rows)
    required = before + _required(spec, early, whole)
    checks = _checks(spec, config, profile, whole)
    if spec.method != "bracket":
        return Expenses(before, required, required, checks, short)
    budget = spec.budget
    if budget == "auto":
        return Expenses(before, required, max(_BUDGET, required), checks, short)
    if required > budget:
        enough = math.ceil(10 * required) / 10
        raise ConfigError(
            f"budget is {budget:g} runs, and to compare the lowest and the highest rank takes up to "
            f"{enough:g} ({before:.1f} of it for the base, the learning rate and the seed noise): give "
            f"--budget {enough:g} or more, longer runs, or fewer held-out rows (--max-eval-rows)"
        )
    return Expenses(before, required, float(budget), checks, short)


def too_short(spec: RankSpec, config: RunConfig, profile: RankProfile) -> tuple[str, ...]:
    """What would make a search long enough; empty where it is."""
    found, rows, held = [], profile.profile.rows, profile.profile.eval_rows
    few, least = held < LEAST_ROWS, least_steps(spec)
    share = math.ceil(100 * (LEAST_ROWS + 1) / (rows + held)) / 100 if few else 0.0
    # What is held out is not trained on.
    left = rows if not few or share > 0.5 else rows + held - math.ceil(share * (rows + held)) - 1
    an_epoch = max(1, math.ceil(min(left, rows) / config.train.batch_size))
    if profile.steps < least or (
        few and config.train.max_steps is None and an_epoch * config.train.epochs < least
    ):
        if config.train.max_steps is not None:
            found.append(f"--max-steps {least}")
        else:
            epochs = math.ceil(least / an_epoch)
            more = (least - 1) * config.train.batch_size + 1
            found.append(
                f"--epochs {epochs} ({epochs * an_epoch} steps), or {more:,} training rows"
            )
    if few:
        way = f"--eval-share {share:g}" if share <= 0.5 else "more rows"
        found.append(f"{way}, or --eval-data with {LEAST_ROWS} rows at least")
    return tuple(found)


def least_steps(spec: RankSpec) -> int:
    """Steps that a run has at least.

    >>> least_steps(RankSpec()), least_steps(RankSpec(probe_share=0.01))
    (40, 101)
    """
    # The smallest n with ⌈probe_share · n⌉ = LEAST_SHORT_STEPS.
    of_short_runs = math.floor((LEAST_SHORT_STEPS - 1) / spec.probe_share) + 1
    return max(LEAST_STEPS, of_short_runs)


def _why(spec: RankSpec, profile: RankProfile) -> list[str]:
    why, held = [], profile.profile.eval_rows
    if profile.steps < least_steps(spec):
        steps = "1 step" if profile.steps == 1 else f"{profile.steps} steps"
        why.append(f"a run has {steps}, and a search needs {least_steps(spec)}")
    if held < LEAST_ROWS:
        why.append(f"{held} rows are held out, and an interval needs {LEAST_ROWS}")
    return why


def _before(spec: RankSpec, config: RunConfig, profile: RankProfile) -> float:
    """Base and prior, then short runs at a middle rank, measured on a few rows."""
    base, whole = profile.profile, profile.run_flops
    known = base.evaluation_flops(0, profile.base_tokens + profile.prior_tokens)
    again = spec.noise_seeds - 1
    if config.train.learning_rate != "auto" or spec.rates == 1:
        runs = spec.noise_seeds
    else:
        # Two rates may be left, and be run with every seed; the noise then is known as well.
        runs = spec.rates + (2 if spec.rates > 1 else 1) * again
    parameters = profile.parameters(spec.ranks[len(spec.ranks) // 2])
    steps = max(1, math.ceil(spec.probe_share * profile.steps))
    rows = min(SHORT_RUN_ROWS, base.eval_rows)
    each = base.training_flops(parameters, steps * base.tokens_per_step)
    each += base.evaluation_flops(parameters, base.eval_tokens * rows / base.eval_rows)
    return (known + runs * each) / whole


def _measuring(profile: RankProfile, share: float) -> float:
    """Measuring a run on a share of the held-out rows, in runs."""
    base, parameters = profile.profile, profile.parameters(profile.highest)
    return base.evaluation_flops(parameters, base.eval_tokens * share) / profile.run_flops


def _required(spec: RankSpec, early: float, whole: float) -> float:
    """What a search cannot do without, after the short runs."""
    count = len(spec.ranks)
    match spec.method:
        case "bracket":
            last = spec.rungs[-1]
            looks = sum(2 * (whole if share >= 1 else early) for share in spec.rungs)
            return 2 * last + (1 - last) + looks + (whole if last < 1 else 0.0)
        case "heal":
            healed = min(count, 2 + math.ceil(math.log2(count)))
            return 1 + healed * spec.heal_share + (1 + count + healed) * whole
        case "nested":
            return 1 + spec.heal_share + (count + 1) * whole
    cost, share, left, before = 0.0, 0.125, count, 0.0
    while True:
        cost += left * (share - before + (whole if share >= 1 else early))
        if share >= 1:
            return cost
        before, share = share, min(1.0, 2 * share)
        left = max(1 if share >= 1 else 2, left // 2)


def _checks(spec: RankSpec, config: RunConfig, profile: RankProfile, whole: float) -> float:
    """The checks that are asked for, each as if nothing it needs were there."""
    run, cost = 1 + whole, 0.0
    if spec.metric is not None:
        base, parameters = profile.profile, profile.parameters(profile.highest)
        samples = min(config.output.samples, base.eval_rows)
        # Where reference answers decide the limit, it is that of the longest: taken as two mean rows.
        limit = config.output.answer_limit or 2 * base.eval_mean_length
        tokens = samples * (limit + base.eval_tokens / base.eval_rows)
        cost += 5 * (run + base.evaluation_flops(parameters, tokens) / profile.run_flops)
    if spec.per_layer:
        cost += 3 * run
    if spec.verify:
        cost += 3 * run
    if spec.exhaustive:
        cost += len(spec.ranks) * spec.grid_rates * spec.grid_seeds * run
    return cost
