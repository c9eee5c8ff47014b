"""A run's result in words: the verdict and the names of its scores."""

from collections.abc import Mapping
from typing import Any

from lorakit.report.numbers import count, duration, is_number, loss, number, percent, signed

Result = Mapping[str, Any]

NAMES = {
    "exact_match": "exact match",
    "f1": "token F1",
    "bleu": "BLEU",
    "chrf": "chrF",
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "field_accuracy": "fields right",
    "json_match": "whole object right",
    "json_validity": "valid JSON",
    "numeric_answer": "final number right",
}
_POINTS = {"bleu", "chrf"}  # 0..100, as they are published; every other score is a share

# A relative change of the loss under this is no change worth a verb.
_STILL = 0.005


def score_name(name: str) -> str:
    """A score's name for a reader."""
    return NAMES.get(name, name.replace("_", " "))


def is_points(name: str) -> bool:
    """Whether a score is published on a scale of 0 to 100 rather than as a share."""
    return name in _POINTS


def _is_share(name: str, *values: float) -> bool:
    return name not in _POINTS and all(0 <= value <= 1 for value in values)


def score_value(name: str, value: Any) -> str:
    """A score in its own unit: a share as percent, BLEU and chrF in points."""
    if not is_number(value) or _is_share(name, value):
        return percent(value)
    return f"{value:.1f}" if name in _POINTS else number(value)


def score_change(name: str, before: Any, after: Any) -> str:
    """The difference: in percentage points for shares, else in the score's own points."""
    if not (is_number(before) and is_number(after)):
        return signed(None)
    return signed((after - before) * (100 if _is_share(name, before, after) else 1))


def score_share(name: str, value: Any) -> float | None:
    """The score as a share of its range, for a picture; None where that makes no sense."""
    if not is_number(value):
        return None
    share = value / 100 if name in _POINTS else float(value)
    return share if 0 <= share <= 1 else None


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
    """What the first score did, or nothing; the first is the one that fits the task."""
    before, after = (result.get(key) or {} for key in ("scores_before", "scores_after"))
    for name, value in after.items():
        if not is_number(value):
            continue
        sentence = score_name(name)
        sentence = sentence[0].upper() + sentence[1:]
        old = before.get(name)
        if not is_number(old):
            return f"{sentence}: {score_value(name, value)}."
        if score_value(name, old) == score_value(name, value):
            return f"{sentence} stayed at {score_value(name, value)}."
        verb = "rose" if value > old else "fell"
        return f"{sentence} {verb} from {score_value(name, old)} to {score_value(name, value)}."
    return ""
