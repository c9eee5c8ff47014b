"""The columns that lorakit knows by name, and what is advised for others."""

from collections.abc import Mapping, Sequence
from typing import Any

CONVERSATIONS = ("messages", "conversations", "conversation")
"""Columns that hold a list of messages."""

KNOWN = (
    *({name} for name in CONVERSATIONS),
    {"prompt", "completion"},
    {"instruction", "output"},
    {"chosen", "rejected"},
    {"preferred_output", "non_preferred_output"},
    {"text"},
)
"""Sets of columns, each of which makes a row readable as it is."""

ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value", "text")

# Columns of other data sets that hold a question or its answer, the likeliest first. "rejected" and
# its like are in neither: an advice must not teach the worse answer.
_QUESTIONS = (
    *("prompt", "question", "instruction", "query", "problem", "user", "human", "input", "source"),
    *(
        "inputs",
        "request",
        "message",
        "article",
        "document",
        "context",
        "text_in",
        "utterance",
        "en",
    ),
)
_ANSWERS = (
    *("completion", "chosen", "answer", "response", "output", "solution", "assistant", "gpt"),
    *("target", "reply", "targets", "outputs", "summary", "answers", "highlights", "bot", "sql"),
    *("code", "generation", "label_text", "intent", "label", "category", "translation", "title"),
)
_WORSE = ("reject", "worse", "bad", "negative", "dispreferred", "non_preferred", "loser")


def is_message(value: Any) -> bool:
    """Whether it looks like one message of a conversation: who speaks, and what.

    >>> is_message({"from": "human", "value": "Hi"}), is_message({"prompt": "Hi", "text": "x"})
    (True, False)
    """
    if not isinstance(value, Mapping) or not any(key in value for key in ROLE_KEYS):
        return False
    return any(key in value for key in (*CONTENT_KEYS, "tool_calls", "function_call"))


def are_messages(value: Any) -> bool:
    """Whether it is a list of messages, at least one."""
    return isinstance(value, list | tuple) and bool(value) and all(map(is_message, value))


def is_row(value: Any) -> bool:
    """Whether it is an object whose columns lorakit knows."""
    return isinstance(value, Mapping) and any(known <= set(value) for known in KNOWN)


def given(value: Any) -> bool:
    """Whether an optional column holds something. 0 and False do; null, "" and [] do not.

    >>> [given(v) for v in (0, False, 0.0, None, "", " ", [], {})]
    [True, True, True, False, False, False, False, False]
    """
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, float) and value != value:
        return False  # NaN is how tables write what is missing
    return value is not None and value not in ([], {}, ())


def suggest(fields: Mapping[str, Any]) -> str:
    """How such a row could be mapped: options that work for it, or what to look for.

    >>> suggest({"id": 7, "question": "…", "answer": "…", "source": "…"})
    "--prompt '{question}' --completion '{answer}'"
    """
    names = {str(name).strip().lower(): str(name) for name in fields if str(name).strip()}
    usable = {k: n for k, n in names.items() if _usable(fields[n]) and not worse(k)}
    inner = [(n, fields[n]) for n in names.values() if isinstance(fields[n], Mapping)]
    if len(inner) == 1 and len(usable) < 2:  # {"translation": {"en": …, "de": …}}
        ((name, value),) = inner
        paths = {str(k).lower(): f"{name}.{k}" for k, v in value.items() if _usable(v)}
        usable = {k: path for k, path in paths.items() if k and not worse(k)}
    question = next((usable[q] for q in _QUESTIONS if q in usable), None)
    rest = {k: n for k, n in usable.items() if n != question}
    answer = next((rest[a] for a in _ANSWERS if a in rest), None)
    if question is None and answer is not None and len(rest) == 2:
        question = next(n for n in rest.values() if n != answer)
    if question is not None and answer is None and len(rest) == 1:
        answer = next(iter(rest.values()))
    if question is not None and answer is not None and not _braces(question + answer):
        return f"--prompt '{{{question}}}' --completion '{{{answer}}}'"
    return (
        "--prompt '{QUESTION}' --completion '{ANSWER}', with the names of the columns that hold "
        "them in place of QUESTION and ANSWER"
    )


def suggest_prompt(fields: Mapping[str, Any]) -> str:
    """How the prompt of such a row could be written: an option that works for it, or what to look for.

    >>> suggest_prompt({"id": 7, "question": "…"}), suggest_prompt({"line": "…"})
    ("--prompt '{question}'", "--prompt '{line}'")
    """
    names = {str(n).strip().lower(): str(n) for n in fields if _usable(fields[n]) and not worse(n)}
    found = next((names[q] for q in (*_QUESTIONS, "text") if q in names), None)
    texts = [n for n in names.values() if isinstance(fields[n], str)]
    found = found or (texts[0] if len(texts) == 1 else None)
    if found is not None and not _braces(found):
        return f"--prompt '{{{found}}}'"
    return "--prompt '{QUESTION}', with the name of the column that holds it in place of QUESTION"


def worse(name: str) -> bool:
    """Whether a column's name says that it holds the worse answer of two."""
    return any(word in name.lower() for word in _WORSE)


def _usable(value: Any) -> bool:
    return value is not None and not isinstance(value, list | tuple | Mapping)


def _braces(name: str) -> bool:
    return bool(set("{}'") & set(name))


def listed(names: Sequence[str]) -> str:
    """Names of columns for a message, the first twelve of them."""
    shown = ", ".join(repr(n) for n in names[:12]) or "none"
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")
