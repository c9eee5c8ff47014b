"""Scores of one text against its references: exact match, token F1, BLEU, chrF, a final number.

Each row function takes the prediction and all references of that row and answers for the best
of them, as SQuAD does.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# A sign counts only where no word or number stands before it: "10-5" holds 10 and 5.
_NUMBER = re.compile(r"(?:(?<![\w.])[-+])?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
# Leading zeros mark a code and not a quantity, and 1,5 may be one and a half.
_BARE_NUMBER = re.compile(
    r"[$€£¥]?\s?[-+]?(?:(?:0|[1-9]\d*|[1-9]\d{0,2}(?:,\d{3})+)(?:\.\d+)?|\.\d+)\s?%?", re.ASCII
)
ANSWER_MARK = "####"


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 where the prediction equals a reference, white space at both ends aside; else 0.0."""
    return float(prediction.strip() in {reference.strip() for reference in references})


def normalize(text: str) -> list[str]:
    """The words that token F1 compares: SQuAD's normalisation, in its order.

    Lower case; ASCII punctuation removed (not replaced by a space); the articles a, an, the
    removed; split at white space. Source: Rajpurkar et al. 2016 (arXiv 1606.05250), the
    official evaluation script. The rule is English; text without spaces between its words
    counts as one word, and chrF is the better score for it.

    >>> normalize("The cat's  hat, an old one.")
    ['cats', 'hat', 'old', 'one']
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """F1 of the bags of normalised words, in 0..1: 2PR/(P+R), the best over the references.

    P = shared/words predicted, R = shared/words of the reference, repeats counted. Two texts
    without words agree (1.0); one without words against one with words scores 0.0.
    """
    predicted = Counter(normalize(prediction))
    return max(_f1(predicted, Counter(normalize(reference))) for reference in references)


def _f1(predicted: Counter[str], wanted: Counter[str]) -> float:
    if not predicted and not wanted:
        return 1.0
    shared = (predicted & wanted).total()
    return 2.0 * shared / (predicted.total() + wanted.total())


def final_number(text: str) -> Decimal | None:
    """The number that a worked solution ends in, or None.

    That is the first number after the first `####`; a text without the mark gives its last
    number, so that a model that never writes the mark is judged by its arithmetic alone
    (the two are "strict" and "flexible" extraction of the usual GSM8K harnesses,
    arXiv 2110.14168). Thousands commas are dropped: 1,200 is 1200, and 18.00 equals 18.
    """
    _, mark, after = text.partition(ANSWER_MARK)
    figures = _NUMBER.findall(after if mark else text)
    if not figures:
        return None
    return Decimal(str(figures[0] if mark else figures[-1]).replace(",", ""))


def is_number(text: str) -> bool:
    """Whether a text is one number and nothing else, a currency or a percent sign aside.

    >>> [is_number(text) for text in (" -1,200.5 ", "$3", "7 %", "7 apples", "1,5", "007")]
    [True, True, True, False, False, False]
    """
    return bool(_BARE_NUMBER.fullmatch(text.strip()))


def numeric_answer(prediction: str, references: Sequence[str]) -> float:
    """1.0 where `final_number` of the prediction equals that of a reference; else 0.0."""
    number = final_number(prediction)
    return float(number is not None and number in {final_number(r) for r in references})


def bleu(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """Corpus BLEU-4 in 0..100, and each row's sentence BLEU (also 0..100).

    sacrebleu's defaults (13a tokens, exponential smoothing; Post 2018, arXiv 1804.08771). The
    row values use the effective order, as short sentences have no 4-grams; the corpus value
    is not their mean.
    """
    from sacrebleu.metrics.bleu import BLEU

    corpus, sentence = BLEU(), BLEU(effective_order=True)
    return _sacrebleu(corpus, sentence, predictions, references)


def chrf(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """Corpus chrF2 in 0..100, and each row's sentence chrF (also 0..100).

    sacrebleu's defaults: character n-grams up to 6, no word n-grams, beta 2 (Popović 2015).
    The corpus value is not the mean of the rows.
    """
    from sacrebleu.metrics.chrf import CHRF

    return _sacrebleu(CHRF(), CHRF(), predictions, references)


def _sacrebleu(
    corpus: "Metric",
    sentence: "Metric",
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
) -> tuple[float, list[float]]:
    # sacrebleu wants one stream per reference; rows with fewer references are filled with None.
    most = max(len(row) for row in references)
    streams: Any = [[row[k] if k < len(row) else None for row in references] for k in range(most)]
    whole = corpus.corpus_score(list(predictions), streams)
    rows = [
        float(sentence.sentence_score(p, list(r)).score)
        for p, r in zip(predictions, references, strict=True)
    ]
    return float(whole.score), rows
