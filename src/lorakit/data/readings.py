"""Rows with a text that can be meant in two ways: as texts to learn, or as questions with an answer.

`text,label` is the commonest CSV there is. Read as text it trains a language model of the questions,
which never sees a label, and nothing would look wrong. So such a file is refused until one of the
readings is named.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from lorakit.data.columns import given
from lorakit.data.mapping import write_value
from lorakit.data.row import Row
from lorakit.errors import DataError

LOOKED_AT = 1000
"""Rows of a source that are looked at."""
_SHORT, _SHOWN, _FEWEST_ROWS = 48, 60, 4

# Words of a column's name.
_ANSWERS = frozenset(
    (
        *("label", "labels", "intent", "intents", "category", "categories", "class", "classes"),
        *("classification", "sentiment", "polarity", "emotion", "emotions", "topic", "topics"),
        *("target", "targets", "tag", "tags", "gold", "truth", "answer", "answers", "response"),
        *("reply", "output", "outputs", "completion", "summary", "translation", "rating", "stars"),
        *("stance", "toxicity", "toxic", "spam", "entities", "entity", "spans", "slots", "sql"),
        *("prediction", "annotation", "annotations", "expected", "solution", "y", "result"),
        *(
            "headline",
            "highlights",
            "abstract",
            "keywords",
            "keyphrases",
            "paraphrase",
            "definition",
        ),
        *("simplified", "corrected", "correction", "rewrite", "rewritten", "normalized", "grade"),
        *("explanation", "verdict", "decision", "priority", "severity", "urgency", "department"),
    )
)
_ABOUT = frozenset(
    (
        *("id", "ids", "idx", "index", "uid", "uuid", "guid", "key", "nr", "number", "row", "line"),
        *(
            "source",
            "src",
            "origin",
            "url",
            "urls",
            "uri",
            "link",
            "href",
            "domain",
            "host",
            "site",
        ),
        *("date", "time", "datetime", "timestamp", "year", "month", "day", "created", "updated"),
        *("published", "modified", "added", "crawled", "author", "authors", "user", "username"),
        *(
            "name",
            "title",
            "lang",
            "language",
            "languages",
            "locale",
            "country",
            "license",
            "licence",
        ),
        *("split", "subset", "fold", "partition", "dataset", "corpus", "collection", "dump"),
        *("file", "filename", "path", "folder", "page", "chapter", "section", "volume", "meta"),
        *("metadata", "hash", "sha", "sha1", "sha256", "md5", "checksum", "length", "len", "size"),
        *("count", "tokens", "token", "words", "chars", "bytes", "version", "doc", "docid"),
        *("document", "offset", "start", "end", "perplexity", "ppl", "embedding", "isbn", "doi"),
        *("note", "notes", "comment", "comments", "remark", "remarks", "publisher", "seen"),
    )
)
_FIGURES = re.compile(r"[-+.,:%\deE\s]+|[0-9a-fA-F-]{12,}|true|false", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-\d\d?(-\d\d?)?([T ].*)?|\d\d?[./]\d\d?[./]\d{2,4}")


def refuse_two_readings(rows: Iterable[Row]) -> None:
    """Refuse rows of text beside which a column looks like an answer.

    That is a column whose name says so (label, intent, category, …). Of those whose names do not say
    that they are about the text (id, source, url, date, …), it is the only one, where its values are
    words, or figures of which there are few; or the first of several whose values are few short words.

    Args:
        rows: the first of a source, with a column 'text'.

    Raises:
        DataError: there is such a column; the message shows both readings and what to type.
    """
    seen = list(rows)
    others = list(dict.fromkeys(name for row in seen for name in row.fields if name != "text"))
    column = _answer_column(seen, others)
    if column is None:
        return
    first = next(row for row in seen if given(row.fields.get(column)))
    shown = [_shown(first.fields.get(name)) for name in ("text", column)]
    field = column if not set("{}'") & set(column) else "COLUMN"
    named = (
        "" if field == column else " (COLUMN: rename it first, braces and quotes cannot be typed)"
    )
    raise DataError(
        f"{first.origin}: the rows can be read in two ways, and they train different models. Say which:"
        f"\n  questions with answers: the model learns to answer {column!r} to 'text'"
        f"\n    {shown[0]} -> {shown[1]}"
        f"\n    --prompt '{{text}}' --completion '{{{field}}}'{named}"
        f"\n  texts alone: the model learns to write such texts, and never sees {column!r}"
        f"\n    {shown[0]}"
        f"\n    --text '{{text}}'"
    )


def _answer_column(rows: Sequence[Row], others: Sequence[str]) -> str | None:
    held = {name: [row.fields.get(name) for row in rows] for name in others}
    filled = [name for name in others if any(given(value) for value in held[name])]
    named = [name for name in filled if _words(name) & _ANSWERS]
    if named:
        return named[0]
    left = [name for name in filled if not _words(name) & _ABOUT]
    if len(left) == 1 and (_few(held[left[0]]) or _in_words(held[left[0]])):
        return left[0]
    return next((name for name in left if _few(held[name]) and _in_words(held[name])), None)


def _words(name: str) -> set[str]:
    """The words of a name: {'intent', 'name'} of intentName and of intent_name."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", str(name))
    return {word for word in re.split(r"[^0-9a-z]+", apart.lower()) if word}


def _few(values: Sequence[Any]) -> bool:
    """Whether the values of a column are classes rather than texts, dates, addresses or figures."""
    there = [value for value in values if given(value)]
    if len(there) < _FEWEST_ROWS or any(isinstance(value, dict | list | tuple) for value in there):
        return False
    texts = [str(value).strip() for value in there]
    if any(len(text) > _SHORT or "://" in text or _DATE.fullmatch(text) for text in texts):
        return False
    different = len(set(texts))
    return 2 <= different <= len(texts) // 2


def _in_words(values: Sequence[Any]) -> bool:
    """Whether the values of a column are texts or names rather than dates, addresses or figures."""
    there = [value for value in values if given(value)]
    if len(there) < _FEWEST_ROWS or not all(isinstance(value, str) for value in there):
        return False
    texts = [str(value).strip() for value in there]
    return len(set(texts)) > 1 and not any(
        "://" in text or _DATE.fullmatch(text) or _FIGURES.fullmatch(text) for text in texts
    )


def _shown(value: Any) -> str:
    text = write_value("" if value is None else value, "a column")
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")
