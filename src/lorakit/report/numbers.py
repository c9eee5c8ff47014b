"""Numbers as a reader wants them. What is missing or not finite shows as a dash.

Spaces before units are no-break spaces, so that a line never ends between the two.
"""

import math
from typing import Any, TypeGuard

from lorakit.files import wording

DASH = "–"
_NBSP = "\u00a0"
_MINUS = "\u2212"


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether the value is a finite number (a bool is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 4) -> str:
    """About `digits` significant digits, thousands apart, no needless zeros.

    >>> number(2442240), number(0.41234567), number(0.0002), number(None)
    ('2,442,240', '0.4123', '2e-4', '–')
    """
    if not is_number(value):
        return DASH
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", _MINUS)
    size = math.floor(math.log10(abs(value)))
    if size < -3 or size >= 15:
        mantissa, exponent = f"{value:.{max(0, digits - 2)}e}".split("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent)}"
    text = f"{value:,.{max(0, digits - 1 - size)}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", _MINUS)


def loss(value: Any) -> str:
    """Nats per token with three decimals, or significant digits where it is under 0.01."""
    if not is_number(value):
        return DASH
    return number(value, 2) if 0 < abs(value) < 0.01 else f"{value:.3f}"


def count(value: Any) -> str:
    """A whole number, thousands apart.

    >>> count(2442240), count(3.7), count(float("nan"))
    ('2,442,240', '4', '–')
    """
    return f"{round(value):,}".replace("-", _MINUS) if is_number(value) else DASH


def percent(value: Any, digits: int = 1) -> str:
    """A share in 0..1 as percent; a tiny one keeps two significant digits.

    >>> percent(0.713).replace("\u00a0", " "), percent(0.00018).replace("\u00a0", " ")
    ('71.3 %', '0.018 %')
    """
    if not is_number(value):
        return DASH
    scaled = 100.0 * value
    tiny = 0 < abs(scaled) < 0.5 * 10**-digits * 10
    text = f"{scaled:.2g}" if tiny else f"{scaled:.{digits}f}"
    return text.replace("-", _MINUS) + _NBSP + "%"


def signed(value: Any, digits: int = 1) -> str:
    """With its sign always, as a difference is read.

    >>> signed(2.5), signed(0.0), signed(None)
    ('+2.5', '0.0', '–')
    """
    if not is_number(value):
        return DASH
    text = f"{value:+.{digits}f}"
    if float(text) == 0:
        text = text[1:]
    return text.replace("-", _MINUS)


def size(value: Any) -> str:
    """Bytes in decimal units; see `files.wording.size`.

    >>> size(1536).replace("\u00a0", " "), size(3e9).replace("\u00a0", " ")
    ('1.5 kB', '3.0 GB')
    """
    return wording.size(value).replace(" ", _NBSP) if is_number(value) else DASH


def duration(value: Any) -> str:
    """Seconds as a person says them.

    >>> [duration(s).replace("\u00a0", " ") for s in (0.25, 42, 212, 4000)]
    ['0.25 s', '42 s', '3 min 32 s', '1 h 7 min']
    """
    if not is_number(value):
        return DASH
    if value < 10:
        return f"{value:.2g}{_NBSP}s" if value else f"0{_NBSP}s"
    seconds = round(value)
    if seconds < 120:
        return f"{seconds}{_NBSP}s"
    if seconds < 3600:
        return f"{seconds // 60}{_NBSP}min{_NBSP}{seconds % 60}{_NBSP}s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours}{_NBSP}h{_NBSP}{minutes}{_NBSP}min"
