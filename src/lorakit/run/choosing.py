"""Answers that are one of a few labels, judged by the likelihood of each label.

A base that answers in prose has every generated answer wrong. How likely each label is to it as the
whole answer says what it knows of the task all the same.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lorakit.errors import DataError, did_you_mean
from lorakit.evaluation import bootstrap_mean
from lorakit.execution.choices import ChoiceScores, read_choices
from lorakit.tasks import TaskAnswer

MOST_CHOICES = 100
"""Labels beyond which nobody asks for all of them unless told to."""


def choices_of(text: str) -> tuple[str, ...]:
    """The labels that --choices names: with commas between, or one a line.

    Raises:
        ConfigError: fewer than two, an empty one, or one twice.
    """
    return read_choices(text.splitlines() if "\n" in text.strip() else text.split(","))


def choice_figures(
    choices: ChoiceScores | None, references: Sequence[TaskAnswer]
) -> dict[str, Any] | None:
    """How often the right label is the likeliest, and how probable it is among all of them.

    Args:
        choices: of the prompts whose answers are `references`; None gives None.
        references: a row whose answer is none of the labels counts as wrong.
    """
    if choices is None:
        return None
    wanted = [reference.scored.strip() for reference in references]
    right = [float(a == b) for a, b in zip(choices.picked, wanted, strict=True)]
    at = {label: i for i, label in enumerate(choices.choices)}
    p_RC = choices.probabilities
    probable = [float(p_RC[r, at[w]]) if w in at else 0.0 for r, w in enumerate(wanted)]
    figures: dict[str, Any] = {
        "labels": list(choices.choices),
        "accuracy": float(np.mean(right)),
        "probability": float(np.mean(probable)),
        "n": len(right),
    }
    if len(right) > 1:
        spread = bootstrap_mean(right, generator=np.random.default_rng(0), bounds=(0.0, 1.0))
        figures |= {"low": spread.low, "high": spread.high}
    return figures


def outside_note(choices: Sequence[str], references: Sequence[TaskAnswer]) -> str:
    """What is to be said of references that are none of the labels; '' where all are.

    Raises:
        DataError: none is, so that no label could be right.
    """
    wanted = [reference.scored.strip() for reference in references]
    outside = [text for text in wanted if text not in choices]
    if not outside:
        return ""
    near = did_you_mean(outside[0], choices)
    if len(outside) == len(wanted):
        raise DataError(
            f"choices: none of the {len(wanted)} references is one of them; the first is "
            f"{outside[0]!r}; {near}"
        )
    return (
        f"{len(outside)} of {len(wanted)} references are none of the choices, such as "
        f"{outside[0]!r}, and count as wrong"
    )
