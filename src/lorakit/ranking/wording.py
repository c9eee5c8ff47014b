"""The sentences of a search, made from its values: the one place that has words."""

from functools import singledispatch
from typing import TYPE_CHECKING

from lorakit.ranking.bracket import (
    AnswerFinished,
    BudgetReached,
    Decision,
    RankCompared,
    RankRuledOut,
)
from lorakit.ranking.choose import LEAST_SHARE, MOST_SHARE, Choice, LossTolerance
from lorakit.ranking.probing import RateEffect, rate_effect
from lorakit.report.numbers import number, percent

if TYPE_CHECKING:
    from lorakit.ranking.checks import Grid, Layered, Scored, Verified
    from lorakit.ranking.command import RankFindings

# Held-out rows below which a note asks for more.
_FEW_ROWS = 100


def answer(findings: "RankFindings") -> str:
    """The answer in a few sentences, and what the checks say of it."""
    probed, checks = findings.probed, findings.checks
    effect = rate_effect(probed.first, probed.rate, findings.search.choice.gaps)
    sentences = [choice(findings.search.choice)]
    if effect is not None:
        sentences.append(rate_matters(effect))
    if "metric" in checks:
        sentences.append(scored(checks["metric"]))
    if "layers" in checks:
        sentences.append(layered(checks["layers"]))
    if "verified" in checks:
        sentences.append(verified(checks["verified"]))
    if "grid" in checks:
        sentences.append(grid(checks["grid"]))
    return " ".join(sentences)


def notes(findings: "RankFindings") -> list[str]:
    """What the user should know besides."""
    ranks, rate, prior = findings.lab.profile, findings.probed.rate, findings.lab.profile.prior
    rows, sentences = ranks.profile.eval_rows, []
    if ranks.estimate.note:
        sentences.append(ranks.estimate.note)
    if findings.probed.at_edge:
        sentences.append(
            f"the chosen rate {rate:g} is the end of the grid; more --rates might find a better one"
        )
    if rows < _FEW_ROWS:
        sentences.append(
            f"{rows} held-out rows: small differences cannot be told; give more for a surer answer"
        )
    sentences.append(
        f"prior: the completions hold {number(prior.bits / 1000, 3)} kbit under the base, at "
        f"{prior.bits_a_parameter:g} bits a parameter those of rank {number(prior.rank, 2)}; "
        "most of it is noise that nothing learns, so this decides nothing"
    )
    share = ranks.parameters(findings.rank) / max(ranks.trainable.values())
    sentences.append(f"the adapter has {percent(share)} of the highest rank's parameters")
    return sentences


def tolerance(margin: LossTolerance) -> str:
    """The tolerance and where it comes from."""
    share, noise = percent(margin.share, 2), percent(margin.noise, 2)
    if margin.from_user:
        return f"{share} of the loss, as given (seed noise of short runs: {noise})"
    words = (
        f"{share} of the loss: the seed noise, estimated from {margin.runs} short runs "
        f"that differ in their seed alone ({noise}"
    )
    if margin.share != margin.noise:
        words += f", kept within {percent(LEAST_SHARE, 1)} and {percent(MOST_SHARE, 1)}"
    return words + ")"


def choice(answer: Choice) -> str:
    """The answer by losses."""
    rank, margin, gaps = answer.rank, f"{number(answer.tolerance, 2)} nats per token", answer.gaps
    open_below, worse = answer.below("open"), answer.below("worse")
    if answer.kind == "indistinguishable":
        words = (
            f"Ranks {rank} to {answer.highest} are indistinguishable here, to within {margin}: take "
            f"the smallest, {rank}."
        )
    elif answer.kind == "unsaturated":
        below = max(answer.below("equivalent", "worse"))
        words = (
            f"The loss is not saturated at rank {answer.highest}: {below} is worse by "
            f"{number(gaps[below].difference.mean, 2)} nats per token. Take {answer.highest}, and "
            "raise --max-rank to see whether more helps."
        )
    else:
        which = "smallest of those compared" if answer.skipped else "smallest"
        words = f"Rank {rank} is the {which} that is within {margin} of the best."
        if worse:
            d = gaps[max(worse)].difference
            words += f" Rank {max(worse)} is worse by {number(d.mean, 2)}."
    if open_below:
        words += (
            f" Whether rank {min(open_below)} suffices these held-out rows do not say; more of them "
            "would."
        )
    if rank in gaps and gaps[rank].state == "open":
        d = gaps[rank].difference
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
    d, state = decision.gap.difference, decision.gap.state
    how = {"healed": ", cut and healed,", "nested": ", a prefix,"}.get(decision.how, "")
    return (
        f"after {decision.share:.0%} of the run rank {decision.rank}{how} is "
        f"{d.mean:+.4f} nats per token from rank {decision.reference} "
        f"({d.low:+.4f} to {d.high:+.4f}): {state}"
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


def scored(score: "Scored") -> str:
    """Whether score and loss agree."""
    values = ", ".join(f"{r}: {number(v, 3)}" for r, v in sorted(score.scores.items()))
    if score.rank == score.rank_by_loss:
        said = f"{score.name} agrees ({values})."
    else:
        said = (
            f"{score.name} and the loss disagree: by the score it is rank {score.rank}, by "
            f"the loss {score.rank_by_loss} ({values}). The score decides, as asked."
        )
    return f"{said} Note: {score.cut}." if score.cut else said


def layered(by_layer: "Layered") -> str:
    """Whether ranks by layer win."""
    d = by_layer.difference
    won = "They win" if by_layer.wins else "They do not win, and are left off"
    return (
        f"Ranks by layer with as many parameters: {number(d.mean, 2)} nats per token "
        f"({number(d.low, 2)} to {number(d.high, 2)}). {won}."
    )


def verified(check: "Verified") -> str:
    """Whether the choice held with another seed."""
    held = "held" if check.held else "did not hold"
    return f"Trained anew with another seed beside its neighbours, the choice {held}."


def grid(whole: "Grid") -> str:
    """The regret of the choice."""
    return (
        f"Against the whole grid the regret is {number(whole.regret, 2)} nats per token "
        f"(seed noise {number(whole.seed_noise, 2)})."
    )


def decided(rate: float, margin: LossTolerance) -> str:
    """The rate and the tolerance, before ranks are searched."""
    return f"rate {rate:g}; tolerance {tolerance(margin)}"
