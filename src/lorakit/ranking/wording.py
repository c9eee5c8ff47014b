"""The sentences of a search, made from its values."""

from functools import singledispatch

from lorakit.ranking.checks import Grid, Layered, Scored, Verified
from lorakit.ranking.choose import LEAST_SHARE, MOST_SHARE, Choice, LossTolerance, RateEffect
from lorakit.ranking.search import (
    AnswerFinished,
    BudgetReached,
    Decision,
    RankCompared,
    RankRuledOut,
)
from lorakit.ranking.trials import Prior
from lorakit.report.numbers import number, percent


def tolerance(chosen: LossTolerance) -> str:
    """The tolerance and where it comes from."""
    share, noise = percent(chosen.share, 2), percent(chosen.noise, 2)
    if chosen.given:
        return f"{share} of the loss, as given (seed noise of short runs: {noise})"
    words = (
        f"{share} of the loss: the seed noise, estimated from {chosen.runs} short runs "
        f"that differ in their seed alone ({noise}"
    )
    if chosen.share != chosen.noise:
        words += f", kept within {percent(LEAST_SHARE, 1)} and {percent(MOST_SHARE, 1)}"
    return words + ")"


def choice(answer: Choice) -> str:
    """The answer in a few sentences."""
    rank, margin, below = answer.rank, f"{number(answer.tolerance, 2)} nats per token", answer.below
    open_below, worse = answer.below_in("open"), answer.below_in("worse")
    if answer.kind == "indistinguishable":
        words = (
            f"Ranks {rank} to {answer.highest} are indistinguishable here, to within {margin}: take "
            f"the smallest, {rank}."
        )
    elif answer.kind == "unsaturated":
        words = (
            f"The loss is not saturated at rank {answer.highest}: {max(below)} is worse by "
            f"{number(answer.gaps[max(below)].mean, 2)} nats per token. Take {answer.highest}, and "
            "raise --max-rank to see whether more helps."
        )
    else:
        which = "smallest of those compared" if answer.skipped else "smallest"
        words = f"Rank {rank} is the {which} that is within {margin} of the best."
        if worse:
            d = answer.gaps[max(worse)]
            words += f" Rank {max(worse)} is worse by {number(d.mean, 2)}."
    if open_below:
        words += (
            f" Whether rank {min(open_below)} suffices these held-out rows do not say; more of them "
            "would."
        )
    if answer.states.get(rank) == "open":
        d = answer.gaps[rank]
        words += (
            f" That is the likelier answer ({percent(answer.confidence, 0)}): by these held-out rows "
            f"it is {number(d.low, 2)} to {number(d.high, 2)} from rank {answer.reference}, and more "
            "of them would tell."
        )
    if answer.skipped:
        first, last = answer.skipped[0], answer.skipped[-1]
        ranks = f"Ranks {first} to {last} were" if first != last else f"Rank {first} was"
        words += f" {ranks} not compared."
    return words


def rate_matters(effect: RateEffect) -> str:
    """That the learning rate matters more than the rank."""
    return (
        f"Rank hardly matters here, the learning rate does: ranks differ by up to "
        f"{number(effect.spread, 2)} nats per token, and rate {effect.worse_rate:g} in place of "
        f"{effect.rate:g} cost {number(effect.cost, 2)} in the probe."
    )


@singledispatch
def sentence(decision: Decision) -> str:
    """A decision of a search; the methods in `alternatives` register theirs."""
    raise TypeError(f"no words for {type(decision).__name__}")


@sentence.register
def _(decision: RankCompared) -> str:
    d = decision.difference
    how = {"healed": ", cut and healed,", "nested": ", a prefix,"}.get(decision.how, "")
    return (
        f"after {decision.share:.0%} of the run rank {decision.rank}{how} is "
        f"{d.mean:+.4f} nats per token from rank {decision.reference} "
        f"({d.low:+.4f} to {d.high:+.4f}): {decision.state}"
    )


@sentence.register
def _(decision: RankRuledOut) -> str:
    return (
        f"rank {decision.rank} is not trained: a power law through ranks {decision.lower} and "
        f"{decision.higher} puts it at {decision.expected:+.4f}, above the tolerance of "
        f"{decision.tolerance:.4f}"
    )


@sentence.register
def _(decision: BudgetReached) -> str:
    what = "not trained"
    if decision.share:
        what = f"not compared later than after {decision.share:.0%} of the run"
    return (
        f"rank {decision.rank} is {what}: with it the search would cost {decision.cost:.2f} runs, "
        f"and --budget is {decision.budget:g}"
    )


@sentence.register
def _(decision: AnswerFinished) -> str:
    way = "goes to the end" if decision.resumed else "has come to the end"
    stopped = ", ".join(
        f"rank {rank} stopped after {share:.0%}" for rank, share in decision.stopped
    )
    return f"rank {decision.rank} {way}" + (stopped and f"; {stopped}")


def scored(score: Scored, rank_by_loss: int) -> str:
    """Whether score and loss agree."""
    values = ", ".join(f"{r}: {number(v, 3)}" for r, v in sorted(score.scores.items()))
    if score.rank == rank_by_loss:
        return f"{score.metric} agrees ({values})."
    return (
        f"{score.metric} and the loss disagree: by the score it is rank {score.rank}, by "
        f"the loss {rank_by_loss} ({values}). The score decides, as asked."
    )


def layered(by_layer: Layered) -> str:
    """Whether ranks by layer win."""
    d = by_layer.difference
    won = "They win" if by_layer.wins else "They do not win, and are left off"
    return (
        f"Ranks by layer with as many parameters: {number(d.mean, 2)} nats per token "
        f"({number(d.low, 2)} to {number(d.high, 2)}). {won}."
    )


def verified(check: Verified) -> str:
    """Whether the choice held with another seed."""
    held = "held" if check.held else "did not hold"
    return f"Trained anew with another seed beside its neighbours, the choice {held}."


def grid(whole: Grid) -> str:
    """The regret of the choice."""
    return (
        f"Against the whole grid the regret is {number(whole.regret, 2)} nats per token "
        f"(seed noise {number(whole.noise, 2)})."
    )


def rate_at_edge(rate: float) -> str:
    """That the probe chose an end of its grid."""
    return f"the chosen rate {rate:g} is the end of the grid; more --rates might find a better one"


def few_rows(rows: int) -> str:
    """That there are few held-out rows."""
    return f"{rows} held-out rows: small differences cannot be told; give more for a surer answer"


def prior(estimate: Prior) -> str:
    """The prior, and that it decides nothing."""
    return (
        f"prior: the completions hold {number(estimate.bits / 1000, 3)} kbit under the base, at "
        f"{estimate.bits_a_parameter:g} bits a parameter those of rank {number(estimate.rank, 2)}; "
        "most of it is noise that nothing learns, so this decides nothing"
    )


def adapter_share(share: float) -> str:
    """How large the adapter is beside the largest."""
    return f"the adapter has {percent(share)} of the highest rank's parameters"


def decided(rate: float, chosen: LossTolerance) -> str:
    """The rate and the tolerance, before ranks are searched."""
    return f"rate {rate:g}; tolerance {tolerance(chosen)}"
