"""The sentences of a comparison, made from its values."""

from collections.abc import Mapping
from typing import Any

from lorakit.comparing.verdict import Verdict
from lorakit.evaluation.crossed import CrossedInterval
from lorakit.report.numbers import number, percent


def judgement(verdict: Verdict, reference: str) -> str:
    """The verdict in a sentence or two; `reference` is what the reference arm is called."""
    d, gain, share = verdict.difference, verdict.gain, percent(verdict.margin, 0)
    named = reference[0].upper() + reference[1:]
    match verdict.kind:
        case "better":
            return f"It is better than {reference} here."
        case "indistinguishable":
            words = f"On these rows it and {reference} are indistinguishable."
            if gain > 0 and max(d.high, -d.low) > verdict.margin * gain:
                words += (
                    f" More rows or seeds could still show a difference above {share} of what "
                    f"{reference} gains over the base."
                )
            return words
        case "close":
            return f"It comes close: {reference} is ahead by less than {share} of its gain."
        case "behind":
            return (
                f"{named} is ahead; whether by more than {share} of its gain, these rows and seeds "
                "do not say."
            )
        case "worth it":
            return f"{named} is worth it here."


def quality(verdict: Verdict) -> str:
    """The loss in one clause, with its interval.

    >>> d = CrossedInterval(0.0123, 0.004, 0.0209, 0.95, 3, 200, 40.0, 4000)
    >>> quality(Verdict("close", d, 0.5, 0.05, 0.9754)).replace("\u00a0", " ")
    'its held-out loss is 0.012 nats per token higher (95 % interval 0.004 to 0.021), 2.5 % of the gain'
    """
    d = verdict.difference
    higher = "higher" if d.mean >= 0 else "lower"
    low, high = sorted((abs(d.low), abs(d.high)))
    if d.low <= 0 <= d.high:  # the interval reaches to both sides: say it with signs
        ends = f"{_nats(d.low, sign=True)} to {_nats(d.high, sign=True)}"
    else:
        ends = f"{_nats(low)} to {_nats(high)}"
    clause = (
        f"its held-out loss is {_nats(abs(d.mean))} nats per token {higher} "
        f"({percent(d.level, 0)} interval {ends})"
    )
    if verdict.gain_kept is not None and verdict.kind not in ("better", "indistinguishable"):
        clause += f", {percent(1 - verdict.gain_kept)} of the gain"
    return clause


def memory(arm: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Parameters and memory beside the reference's, in one clause."""
    fewer = 1 - arm["trainable_parameters"] / reference["trainable_parameters"]
    share = arm["measured"]["peak_memory_bytes"] / reference["measured"]["peak_memory_bytes"]
    if arm["trainable_parameters"] == reference["trainable_parameters"]:
        trained = "trains as many parameters"
    else:
        trained = f"trains {percent(abs(fewer))} {'fewer' if fewer > 0 else 'more'} parameters"
    return f"{trained} in {percent(share, 0)} of the memory"


def forgetting(
    arm: Mapping[str, Any], reference: Mapping[str, Any], d: CrossedInterval | None
) -> str:
    """How far it moved from the base on general text, in one clause.

    Args:
        arm, reference: with the mean "kl" from the base.
        d: their difference, where there is an interval.

    >>> forgetting({"kl": {"mean": 0.1}}, {"kl": {"mean": 0.3}}, None)
    'it forgets a third as much'
    """
    ours, theirs = arm["kl"]["mean"], reference["kl"]["mean"]
    if theirs <= 0:
        return f"it moves {number(ours, 2)} nats per token from the base on general text"
    clause = f"it forgets {_times(ours / theirs)}"
    if d is not None and d.low <= 0 <= d.high:
        clause += (
            f" (KL {_nats(d.mean, sign=True)}, interval {_nats(d.low, sign=True)} to "
            f"{_nats(d.high, sign=True)}: these prompts and seeds do not say which forgets more)"
        )
    return clause


_FRACTIONS = {1 / 10: "a tenth", 1 / 5: "a fifth", 1 / 4: "a quarter", 1 / 3: "a third",
              1 / 2: "half", 2 / 3: "two thirds", 3 / 4: "three quarters"}  # fmt: skip


def _times(ratio: float) -> str:
    if 0.95 <= ratio <= 1.05:
        return "as much"
    for fraction, word in _FRACTIONS.items():
        if abs(ratio / fraction - 1) <= 0.08:
            return f"{word} as much"
    return f"{number(ratio, 2)} times as much"


def _nats(value: float, *, sign: bool = False) -> str:
    digits = 3 if abs(value) >= 0.0005 or value == 0 else 5
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "\u2212")


def rate_at_edge(name: str, rate: float) -> str:
    """That the probe chose an end of its grid."""
    return f"{name}: the chosen rate {rate:g} is the end of the grid; more --rates might find a better one"


ONE_SEED = "one seed: the intervals say how other rows would differ, not other seeds"
NOTHING_COMPARED = "Nothing was compared: give two held-out rows at least."
NOTHING_ASKED = "nothing can be asked"
