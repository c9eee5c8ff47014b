"""The sentences of a comparison, made from its verdicts: nothing here decides what may be said."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.evaluation.verdict import LEAST_ROWS, Verdict
from lorakit.report.numbers import number, percent

# An interval of a ratio whose ends are farther apart than this says only which is larger.
_WIDEST_RATIO = 4.0


def judgement(verdict: Verdict, reference: str, share: float) -> str:
    """The verdict on quality in a sentence or two.

    Args:
        verdict: on the held-out loss.
        reference: what the reference arm is called.
        share: the margin, as a share of what the reference gained over the base.
    """
    named = reference[0].upper() + reference[1:]
    margin = f"{percent(share, 0)} of what {reference} gains over the base"
    d = verdict.difference
    match verdict.word:
        case "better":
            return f"It is better than {reference} here."
        case "worse" if verdict.beyond:
            return f"{named} is better here, by more than the margin of {margin}: it is worth it."
        case "worse" if verdict.margin is None:
            return f"{named} is better here; it did not gain over the base, so that no margin is known."
        case "worse":
            return f"{named} is better here; whether by more than the margin of {margin} cannot be told."
        case "equal":
            words = f"It and {reference} are equal within the margin, {margin}"
            if d is not None and (d.low > 0 or d.high < 0):
                ahead = reference if d.low > 0 else "it"
                words += f"; {ahead} is ahead by less than that"
            return words + "."
    return f"Which is better cannot be told.{would_tell(verdict)}"


def would_tell(verdict: Verdict) -> str:
    """What would, as a sentence that follows another; empty where a word is said."""
    if not verdict.needs:
        return ""
    return f" To tell, give {' and '.join(verdict.needs)}."


def quality(verdict: Verdict, difference: Mapping[str, Any], gain_kept: float | None) -> str:
    """The loss in one clause, with its interval.

    Args:
        verdict: on it.
        difference: "mean" and, where there is an interval, "low", "high" and "level".
        gain_kept: share of the reference's gain that the arm has; None where nothing was gained.

    >>> from lorakit.evaluation.crossed import CrossedInterval
    >>> d = CrossedInterval(0.0123, 0.004, 0.0209, 0.95, 3, 200, 0.9, 1000)
    >>> from lorakit.evaluation.verdict import judge
    >>> quality(judge(d, 0.01), d.to_dict(), 0.9754).replace("\u00a0", " ")
    'its held-out loss is 0.012 nats per token higher (95 % interval 0.004 to 0.021), 2.5 % of the gain'
    >>> quality(judge(d, 0.03), d.to_dict(), 0.9754).replace("\u00a0", " ")
    'its held-out loss differs by +0.012 nats per token (95 % interval +0.004 to +0.021)'
    """
    mean, low, high = (difference[name] for name in ("mean", "low", "high"))
    if low is None:
        rows = difference["rows"]
        return (
            f"its held-out loss differs by {_nats(mean, sign=True)} nats per token on {rows} rows, too "
            "few for an interval"
        )
    level = percent(difference["level"], 0)
    if verdict.word not in ("better", "worse"):
        ends = f"{_nats(low, sign=True)} to {_nats(high, sign=True)}"
        return (
            f"its held-out loss differs by {_nats(mean, sign=True)} nats per token "
            f"({level} interval {ends})"
        )
    ends = " to ".join(_nats(end) for end in sorted((abs(low), abs(high))))
    way = "higher" if verdict.word == "worse" else "lower"
    clause = (
        f"its held-out loss is {_nats(abs(mean))} nats per token {way} ({level} interval {ends})"
    )
    if gain_kept is not None and verdict.word == "worse":
        clause += f", {percent(1 - gain_kept)} of the gain"
    return clause


def memory(arm: Mapping[str, Any], reference: Mapping[str, Any], verdict: Verdict) -> str:
    """Parameters and memory beside the reference's, in one clause.

    Args:
        arm, reference: with "trainable_parameters", a count that is exact, and what was measured.
        verdict: on the logarithm of the ratio of their peaks of memory.
    """
    fewer = 1 - arm["trainable_parameters"] / reference["trainable_parameters"]
    if arm["trainable_parameters"] == reference["trainable_parameters"]:
        trained = "trains as many parameters"
    else:
        trained = f"trains {percent(abs(fewer))} {'fewer' if fewer > 0 else 'more'} parameters"
    peaks = [each["measured"]["peak_memory_bytes"] for each in (arm, reference)]
    share, d = percent(peaks[0] / peaks[1], 0), verdict.difference
    if verdict.word == "equal":
        return f"{trained} in as much memory, within the margin of {_share(verdict)}"
    if verdict.told and d is not None:
        ends = f"{percent(math.exp(d.low), 0)} to {percent(math.exp(d.high), 0)}"
        return f"{trained} in {share} of the memory ({percent(d.level, 0)} interval {ends})"
    if d is None:
        return f"{trained}; measured once each, its peak of memory was {share} of the other's"
    return (
        f"{trained}; its peak of memory was {share} of the other's, and which needs more cannot be "
        "told"
    )


def _share(verdict: Verdict) -> str:
    """A margin of a logarithm as a share."""
    return percent(math.expm1(verdict.margin or 0.0), 0)


def forgetting(
    arm: Mapping[str, Any],
    reference: Mapping[str, Any],
    verdict: Verdict,
    ratio: Sequence[float] | None,
) -> str:
    """How far it moved from the base on general text, in one clause.

    Args:
        arm, reference: with the mean "kl" from the base.
        verdict: on their difference.
        ratio: the ends of the interval of their ratio, where it has ends.

    >>> from lorakit.evaluation.crossed import CrossedInterval
    >>> d = CrossedInterval(-0.2, -0.25, -0.15, 0.95, 3, 40, 0.9, 1000)
    >>> means = {"kl": {"mean": 0.1}}, {"kl": {"mean": 0.3}}
    >>> forgetting(*means, Verdict("better", d, 0.03, True), (0.28, 0.4)).replace("\u00a0", " ")
    'it forgets a third as much (95 % interval 0.28 to 0.4 times)'
    >>> forgetting(*means, Verdict("better", d, 0.03, True), None)
    'it forgets less'
    """
    ours, theirs, d = arm["kl"]["mean"], reference["kl"]["mean"], verdict.difference
    if verdict.word == "equal":
        share = percent((verdict.margin or 0.0) / theirs, 0)
        return f"it forgets as much, within the margin of {share}"
    if verdict.told and d is not None:
        if ratio is None or ratio[1] > _WIDEST_RATIO * ratio[0] or ratio[0] <= 1 <= ratio[1]:
            return f"it forgets {'less' if verdict.word == 'better' else 'more'}"
        ends = f"{number(ratio[0], 2)} to {number(ratio[1], 2)} times"
        return f"it forgets {_times(ours / theirs)} ({percent(d.level, 0)} interval {ends})"
    clause = f"it moved {_nats(ours)} nats per token from the base on general text, the other {_nats(theirs)}"
    if d is not None:
        clause += f" (difference {_nats(d.low, sign=True)} to {_nats(d.high, sign=True)})"
    return f"{clause}: which forgets more cannot be told"


_FRACTIONS = {1 / 10: "a tenth", 1 / 5: "a fifth", 1 / 4: "a quarter", 1 / 3: "a third",
              1 / 2: "half", 2 / 3: "two thirds", 3 / 4: "three quarters"}  # fmt: skip


def _times(ratio: float) -> str:
    for fraction, word in _FRACTIONS.items():
        if abs(ratio / fraction - 1) <= 0.08:
            return f"{word} as much"
    return f"{number(ratio, 2)} times as much"


def _nats(value: float, *, sign: bool = False) -> str:
    digits = 3 if abs(value) >= 0.0005 or value == 0 else 5
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "\u2212")


def margins(margins: Mapping[str, float]) -> str:
    """The margins, as they are said before anything is trained.

    Args:
        margins: of the loss, the scores, the forgetting and the costs, as shares.
    """
    return (
        f"margins, within which two arms count as equal: held-out loss {percent(margins['loss'])} of "
        f"what the reference gains over the base; scores {number(margins['scores'], 3)}; "
        f"forgetting {percent(margins['forgetting'])} of the reference's; memory and time "
        f"{percent(margins['costs'])}"
    )


def nothing_told(test_rows: int, seeds: int) -> list[str]:
    """Why no word will be said of the arms, and what would do; empty where a word may be said.

    >>> nothing_told(12, 3)
    []
    >>> nothing_told(1, 3)
    ['nothing will be said of the arms: 1 test row, and fewer than 12 have no interval: give --eval-data, or a larger --eval-share']
    """
    few = test_rows < LEAST_ROWS
    rows = f"{test_rows} test row{'' if test_rows == 1 else 's'}, and fewer than {LEAST_ROWS} have no interval"
    reasons = [f"{rows}: give --eval-data, or a larger --eval-share"] if few else []
    reasons += ["one seed does not say what another would give: --seeds 3"] if seeds == 1 else []
    return [f"nothing will be said of the arms: {reason}" for reason in reasons]


def packed_arms(base_dtype: str, dtype: str) -> str:
    """How the arms hold the base, where they hold it in different ways."""
    return (
        f"the LoRA arms hold the base in {base_dtype}, full fine-tuning trains it in {dtype}; what they "
        f"gain and forget is measured from the base in {dtype}, so that packing it counts"
    )


def rate_at_edge(name: str, rate: float) -> str:
    """That the probe chose an end of its grid."""
    return f"{name}: the chosen rate {rate:g} is the end of the grid; more --rates might find a better one"


ONE_SEED = "one seed: the intervals say how other rows would differ, not other seeds; no word is said of the arms"
NOTHING_ASKED = "nothing can be asked"
