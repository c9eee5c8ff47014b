"""What kind of answers references are, and so by which metrics answers are judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from lorakit.evaluation import calls, structured, text

References = Sequence[Sequence[str]]
Kind = Literal["calls", "json", "worked", "number", "text"]

# A label is short, and a set of labels is one whose members return: on average twice or more.
_LABEL_CHARACTERS = 64
_LABEL_REPEATS = 2
# BLEU counts runs of one to four words: of shorter answers there is nothing to count.
_BLEU_WORDS = 4
# Answers of at most so many words are right or wrong.
_FEW_WORDS = 3
# One "word" of more characters than this is a text whose language puts no spaces between words.
_LONG_WORD = 12
# From here on most scripts put no spaces between words, before it all do.
_THAI = "\u0e00"


@dataclass(frozen=True)
class ChosenMetrics:
    """The metrics for some references, the one that fits best first, and a clause that says why.

    labels: the distinct references where they are few short labels; else ().
    """

    names: tuple[str, ...]
    why: str
    labels: tuple[str, ...] = ()


def choose(references: References) -> ChosenMetrics:
    """The metrics that fit the references, in the order in which they fit.

    - some call tools: call_match, call_names, exact_match
    - all JSON objects or arrays: field_accuracy, json_match, json_validity, exact_match, f1
    - all end in `#### number`: numeric_answer, exact_match, f1
    - one short line a row, each distinct one twice or more on average: accuracy, macro_f1,
      exact_match, f1
    - all are a number: numeric_answer, exact_match
    - mostly three words or fewer: exact_match, f1, chrf
    - mostly without spaces between words: chrf, exact_match
    - any other text: f1, chrf, bleu, exact_match; no bleu where most have fewer than four words

    f1 is left out where references have no words to it (`lorakit.evaluation.text.normalize`: "a" and
    "?" have none) or, of labels, where two are the same words.
    """
    kinds = [kind_of_row(row) for row in references]
    f1 = ("f1",) if _has_words(references) else ()
    if "calls" in kinds:
        return ChosenMetrics(
            ("call_match", "call_names", "exact_match"),
            f"{kinds.count('calls')} of {len(kinds)} references call tools",
        )
    if set(kinds) == {"json"}:
        return ChosenMetrics(
            ("field_accuracy", "json_match", "json_validity", "exact_match", *f1),
            f"every reference is a JSON {_json_kind(references)}",
        )
    if set(kinds) == {"worked"}:
        return ChosenMetrics(
            ("numeric_answer", "exact_match", *f1),
            f"every reference ends in '{text.ANSWER_MARK}' and a number",
        )
    if labels := _labels(references):
        apart = {tuple(text.normalize(label)) for label in labels}
        f1 = f1 if len(apart) == len(labels) else ()
        return ChosenMetrics(
            ("accuracy", "macro_f1", "exact_match", *f1),
            f"the {len(references)} references are {len(labels)} short labels",
            labels,
        )
    if set(kinds) == {"number"}:
        return ChosenMetrics(("numeric_answer", "exact_match"), "every reference is a number")
    return _of_text(references, f1)


def kind_of_row(row: Sequence[str]) -> Kind:
    """What the references of one row are; a label is known by the others alone."""
    if all(calls.calls_in(reference) for reference in row):
        return "calls"
    if all(structured.parse_json(reference) is not None for reference in row):
        return "json"
    if all(text.ANSWER_MARK in r and text.final_number(r) is not None for r in row):
        return "worked"
    return "number" if all(text.is_number(reference) for reference in row) else "text"


def _of_text(references: References, f1: tuple[str, ...]) -> ChosenMetrics:
    words = [len(row[0].split()) for row in references]
    characters = median(len(row[0].strip()) for row in references)
    if median(words) <= 1 and characters > _LONG_WORD and not _spaced(references):
        return ChosenMetrics(("chrf", "exact_match"), "the references are text without spaces")
    if median(words) <= _FEW_WORDS:
        return ChosenMetrics(("exact_match", *f1, "chrf"), "the references are short answers")
    bleu = ("bleu",) if median(words) >= _BLEU_WORDS else ()
    return ChosenMetrics((*f1, "chrf", *bleu, "exact_match"), "the references are free text")


def _spaced(references: References) -> bool:
    """Whether the letters are of scripts that put spaces between words."""
    letters = [c for row in references for c in row[0] if c.isalpha()]
    return sum(c < _THAI for c in letters) * 2 >= len(letters)


def _has_words(references: References) -> bool:
    return all(text.normalize(reference) for row in references for reference in row)


def _labels(references: References) -> tuple[str, ...]:
    """The distinct references where they are a set of labels, in alphabetical order."""
    if not all(_is_label(row) for row in references):
        return ()
    distinct = sorted({row[0].strip() for row in references})
    few = len(distinct) >= 2 and len(distinct) * _LABEL_REPEATS <= len(references)
    return tuple(distinct) if few else ()


def _is_label(row: Sequence[str]) -> bool:
    label = row[0].strip()
    return len(row) == 1 and 0 < len(label) <= _LABEL_CHARACTERS and "\n" not in label


def _json_kind(references: References) -> str:
    objects = [isinstance(structured.parse_json(r), dict) for row in references for r in row]
    if all(objects):
        return "object"
    return "object or array" if any(objects) else "array"
