"""A run's result in words: the verdict, and what its scores did."""

from collections.abc import Mapping
from typing import Any

from lorakit.adapters.measurements import score_name
from lorakit.report.numbers import (
    DASH,
    count,
    duration,
    is_number,
    loss,
    number,
    percent,
    signed,
)

Result = Mapping[str, Any]

# A relative change of the loss under this is no change worth a verb.
_STILL = 0.005
# A difference of fewer answers is never clear: a sign test of five cannot reach 5 %.
_FEWEST = 6


def score_value(name: str, value: Any) -> str:
    """A score as a share of the best possible, 0 to 1, on the scale that every command prints."""
    if not is_number(value):
        return DASH
    return f"{value:.3f}" if 0 <= value <= 1 else number(value)


def score_change(name: str, before: Any, after: Any) -> str:
    """The difference of two scores, on the same scale."""
    if not (is_number(before) and is_number(after)):
        return signed(None)
    return signed(after - before, 3 if 0 <= before <= 1 and 0 <= after <= 1 else 1)


def score_share(name: str, value: Any) -> float | None:
    """The score as a share of its range, for a picture; None where that makes no sense."""
    return float(value) if is_number(value) and 0 <= value <= 1 else None


def score_verdict(result: Result, name: str) -> str:
    """'better', 'worse' or 'no clear change' from before to after; '' where nothing can be told.

    A word stands only for a change whose whole interval lies on one side of 0, over six answers or
    more.
    """
    change = (result.get("scores_change") or {}).get(name)
    if not isinstance(change, Mapping):
        return ""
    low, high, n = (change.get(key) for key in ("low", "high", "n"))
    if not (is_number(low) and is_number(high) and is_number(n)):
        return ""
    if n >= _FEWEST and low > 0:
        return "better"
    return "worse" if n >= _FEWEST and high < 0 else "no clear change"


def first_score(result: Result) -> str | None:
    """The score that leads the page: the one that fits the task, as the run says."""
    after = result.get("scores_after") or {}
    headline = result.get("headline")
    names = [headline, *after] if headline in after else list(after)
    return next((name for name in names if is_number(after.get(name))), None)


def verdict(result: Result) -> str:
    """One sentence: what the loss did, in which time, with how many parameters."""
    before, after, train = (
        result.get(key) for key in ("eval_loss_before", "eval_loss", "train_loss")
    )
    seconds = result.get("seconds")
    time = f" in {duration(seconds)}" if is_number(seconds) else ""
    if is_number(before) and is_number(after):
        if abs(after - before) <= _STILL * abs(before):
            move = f"Held-out loss stayed at {loss(after)}"
        else:
            verb = "fell" if after < before else "rose"
            move = f"Held-out loss {verb} from {loss(before)} to {loss(after)}"
        sentence = f"{move} nats per token{time}"
    elif is_number(after):
        sentence = f"Held-out loss is {loss(after)} nats per token after training{time}"
    elif is_number(train):
        sentence = (
            f"Training loss ended at {loss(train)} nats per token{time}; no rows were held out"
        )
    else:
        sentence = "No final loss was recorded: the run did not finish"
    trained, total = result.get("trainable_parameters"), result.get("total_parameters")
    if is_number(trained):
        sentence += f"; {count(trained)} parameters trained"
        if is_number(total) and total > 0:
            sentence += f", {percent(trained / total)} of the model"
    return sentence + "."


def second_verdict(result: Result) -> str:
    """What the score that fits the task did, or nothing."""
    name = first_score(result)
    if name is None:
        return ""
    old, new = (result.get(key) or {} for key in ("scores_before", "scores_after"))
    before, after = old.get(name), score_value(name, new[name])
    sentence = score_name(name)
    sentence = sentence[0].upper() + sentence[1:]
    if not is_number(before):
        return f"{sentence}: {after}."
    if score_value(name, before) == after:
        return f"{sentence} stayed at {after}."
    move = f"from {score_value(name, before)} to {after}"
    word = score_verdict(result, name)
    if word != "no clear change":
        return f"{sentence} {'rose' if new[name] > before else 'fell'} {move}."
    n = (result.get("scores_change") or {}).get(name, {}).get("n")
    rows = f" over {count(n)} answers" if is_number(n) else ""
    return f"{sentence} went {move}: no clear change{rows}."
