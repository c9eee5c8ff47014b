"""The sentences of a search, made from its values: the one place that has words.

What is said of a rank is what its verdict allows (`lorakit.evaluation.verdict`), and nothing more. What a
search goes on with, where nothing can be told, it says as its own doing.
"""

from functools import singledispatch
from typing import TYPE_CHECKING

from lorakit.evaluation.verdict import Verdict
from lorakit.ranking.bracket import (
    AnswerFinished,
    BudgetReached,
    Decision,
    RankCompared,
    RankRuledOut,
)
from lorakit.ranking.choose import LEAST_SHARE, MOST_SHARE, Choice, LossTolerance
from lorakit.ranking.probing import RateEffect, rate_effect
from lorakit.report.numbers import number, percent, signed

if TYPE_CHECKING:
    from lorakit.ranking.checks import Grid, Layered, Scored, Verified
    from lorakit.ranking.command import RankFindings
    from lorakit.ranking.expenses import Expenses


def answer(findings: "RankFindings") -> str:
    """The answer in a few sentences, and what the checks say of it."""
    probed, checks = findings.probed, findings.checks
    effect = rate_effect(probed, findings.tolerance, findings.search.choice.gaps)
    sentences = [choice(findings.search.choice)]
    if findings.expenses.short:
        sentences = [
            f"No rank is recommended: the search was too short. Rank {findings.rank} was trained."
        ]
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
    sentences = [f"nothing is said of any rank: {each}" for each in findings.expenses.short]
    if ranks.estimate.note:
        sentences.append(ranks.estimate.note)
    if findings.probed.at_edge:
        sentences.append(
            f"the chosen rate {rate:g} is the end of the grid; more --rates might find a better one"
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
    """The tolerance, by which the search goes on, and where it comes from."""
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


def margin(share: float | None) -> str:
    """The margin that is named before the search; None for what is taken where none was given."""
    if share is None:
        return f"{percent(MOST_SHARE, 1)} of the loss (--tolerance names another)"
    return f"{percent(share, 2)} of the loss, as given"


def forecast(expenses: "Expenses") -> str:
    """What a search costs at most, before it begins."""
    words = (
        f"the search costs at most {expenses.most:.1f} runs at the highest rank, measuring included: "
        f"{expenses.before:.1f} before ranks are compared"
    )
    if expenses.checks:
        words += f"; the checks that were asked for at most {expenses.checks:.1f} more"
    return words


def choice(answer: Choice) -> str:
    """The answer by losses."""
    rank = answer.rank
    words = [f"Take rank {rank}{'' if rank != answer.highest else ', the highest candidate'}."]
    if rank in answer.gaps:
        words.append(beside(answer.gaps[rank].verdict, f"rank {rank}", f"rank {answer.reference}"))
    worse, unknown = answer.below("worse"), answer.below("cannot be told")
    if worse:
        verdict = answer.gaps[max(worse)].verdict
        words.append(beside(verdict, f"rank {max(worse)}", f"rank {answer.reference}"))
    if answer.kind == "unsaturated":
        words.append("Raise --max-rank to see whether more helps.")
    for below in unknown[-1:]:
        verdict = answer.gaps[below].verdict
        words.append(beside(verdict, f"rank {below}", f"rank {answer.reference}"))
    if answer.skipped:
        first, last = answer.skipped[0], answer.skipped[-1]
        ranks = f"Ranks {first} to {last} were" if first != last else f"Rank {first} was"
        words.append(f"{ranks} not compared.")
    return " ".join(words)


def beside(verdict: Verdict, ours: str, theirs: str) -> str:
    """What may be said of one thing beside another, in a sentence that begins with it."""
    ours = ours[0].upper() + ours[1:]
    match verdict.word:
        case "better" | "worse":
            word = verdict.word + (", by more than the margin," if verdict.beyond else "")
            return f"{ours} is {word} than {theirs}: {figures(verdict)}."
        case "equal":
            margin = number(verdict.margin, 2)
            return (
                f"{ours} and {theirs} are equal within the margin of {margin}: {figures(verdict)}."
            )
    known = (
        f": {figures(verdict)}, at a margin of {number(verdict.margin, 2)}"
        if verdict.difference
        else ""
    )
    tells = f" To tell, give {' and '.join(verdict.needs)}." if verdict.needs else ""
    return f"Whether {ours[0].lower()}{ours[1:]} is better or worse than {theirs} cannot be told{known}.{tells}"


def figures(verdict: Verdict) -> str:
    """A difference with its interval."""
    d = verdict.difference
    if d is None:
        return "no interval"
    digits = 4 if max(abs(d.low), abs(d.high)) >= 0.001 else 6
    ends = f"{signed(d.low, digits)} to {signed(d.high, digits)}"
    return f"{signed(d.mean, digits)} nats per token ({percent(d.level, 0)} interval {ends})"


def rate_matters(effect: RateEffect) -> str:
    """That the learning rate matters more than the rank."""
    return (
        f"The learning rate matters more than the rank here: no rank that was compared differs by more "
        f"than {number(effect.spread, 2)} nats per token, and rate {effect.worse_rate:g} in place of "
        f"{effect.rate:g} cost {number(effect.cost, 2)} in short runs, at least {number(effect.least, 2)}."
    )


@singledispatch
def sentence(decision: Decision) -> str:
    """A decision of a search; the methods in `alternatives` register theirs."""
    raise TypeError(f"no words for {type(decision).__name__}")


_GOES_ON = {
    "enough": "the search takes it for enough",
    "short": "the search looks for a larger one",
    "open": "the search leaves it open",
}


@sentence.register
def _(decision: RankCompared) -> str:
    verdict, state = decision.gap.verdict, decision.gap.state
    how = {"healed": ", cut and healed,", "nested": ", a prefix,"}.get(decision.how, "")
    said = (
        figures(verdict)
        if verdict.difference
        else f"{decision.gap.difference.mean:+.4f} nats per token"
    )
    return (
        f"after {decision.share:.0%} of the run rank {decision.rank}{how} less rank "
        f"{decision.reference} is {said}: {verdict.word}; {_GOES_ON[state]}"
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
    """Which rank the score takes, and that each was trained once."""
    values = ", ".join(f"{r}: {number(v, 3)}" for r, v in sorted(score.scores.items()))
    if score.rank == score.rank_by_loss:
        chosen = f"By {score.name} it is rank {score.rank} too ({values})."
    else:
        chosen = (
            f"By {score.name} it is rank {score.rank}, by the loss {score.rank_by_loss} ({values}). The "
            "score decides, as asked."
        )
    said = (
        f"{chosen} Each rank was trained once: whether another seed would score so cannot be told."
    )
    return f"{said} Note: {score.cut}." if score.cut else said


def layered(by_layer: "Layered") -> str:
    """What may be said of ranks by layer."""
    said = beside(by_layer.verdict, "the adapter with ranks by layer", "that with one rank")
    kept = "It is recommended." if by_layer.wins else "It is not recommended."
    return f"{said} {kept}"


def verified(check: "Verified") -> str:
    """What another seed says of the choice."""
    if check.verdict is None:
        return f"Trained again with another seed, rank {check.rank} has the lowest loss of its neighbours."
    said = beside(check.verdict, f"rank {check.rank}", f"rank {check.best}")
    return f"Trained again with another seed, beside its neighbours: {said}"


def grid(whole: "Grid") -> str:
    """The regret of the choice."""
    at = f"rank {whole.best['rank']} at rate {whole.best['rate']:g}, the lowest loss of the grid"
    if whole.verdict is None:
        return f"Of the whole grid the choice has the lowest loss (seed noise {number(whole.seed_noise, 2)})."
    return (
        f"{beside(whole.verdict, 'the choice', at)} Seed noise of whole runs: "
        f"{number(whole.seed_noise, 2)}."
    )


def decided(rate: float, margin: LossTolerance) -> str:
    """The rate and the tolerance, before ranks are searched."""
    return f"rate {rate:g}; tolerance {tolerance(margin)}"
