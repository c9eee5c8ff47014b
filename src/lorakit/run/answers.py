"""Held-out prompts put to a model, and its answers scored: before and after."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.data import Example, encode_prompt
from lorakit.evaluation.metrics import Scores, score
from lorakit.execution.generate import Generation, generate
from lorakit.run.session import Session


@dataclass(frozen=True)
class Compared:
    """Scores of two sets of answers to the same prompts, and the answers side by side."""

    before: dict[str, float]
    after: dict[str, float]
    samples: list[dict[str, Any]]


def ask(session: Session, examples: Sequence[Example], max_new_tokens: int) -> list[str]:
    """Greedy answers of the session's model to the prompts of examples that have an answer."""
    prompts = [
        encode_prompt(example, session.tokenizer, session.template).tolist()
        for example in with_answers(examples)
    ]
    if not prompts:
        return []
    made: list[Generation] = generate(
        session.model, session.tokenizer, prompts, max_new_tokens=max_new_tokens
    )
    return [answer.text.strip() for answer in made]


def pick(examples: Sequence[Example], count: int) -> list[Example]:
    """Up to `count` examples that can be asked and scored, no prompt twice, spread evenly.

    Files often hold several answers to one prompt in a row; the first few rows would show one
    prompt several times.
    """
    distinct: dict[tuple[str, ...], Example] = {}
    for example in with_answers(examples):
        asked = tuple(str(m) for m in (example.messages or ())[: example.answer_at])
        distinct.setdefault((example.question, *asked), example)
    kept = list(distinct.values())
    if count >= len(kept):
        return kept
    return [kept[i * len(kept) // count] for i in range(count)]


def with_answers(examples: Sequence[Example]) -> list[Example]:
    """Those that ask something and know the answer; plain text does neither."""
    return [example for example in examples if example.answer is not None]


def score_answers(examples: Sequence[Example], answers: Sequence[str], metrics: Any) -> Scores:
    """Scores of answers to the prompts of these examples."""
    references = [str(example.answer).strip() for example in with_answers(examples)]
    return score(list(answers), references, metrics)


def compare(examples: Sequence[Example], before: Sequence[str], after: Sequence[str]) -> Compared:
    """Both sets scored alike, with each prompt, reference and pair of answers."""
    asked = with_answers(examples)
    if not asked:
        return Compared({}, {}, [])
    samples: list[dict[str, Any]] = [
        {"prompt": e.question, "reference": str(e.answer).strip(), "before": b, "after": a}
        for e, b, a in zip(asked, before, after, strict=True)
    ]
    scored = [score_answers(examples, answers, "auto") for answers in (before, after)]
    for name, scores in zip(("before_score", "after_score"), scored, strict=True):
        best = scores.metrics[0]
        for sample, value in zip(samples, best.rows or (), strict=False):
            sample[name] = value
    return Compared(scored[0].values, scored[1].values, samples)
