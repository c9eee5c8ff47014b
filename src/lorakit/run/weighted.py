"""An adapter with a weight, as a command takes it: NAME:WEIGHT."""

from pathlib import Path

from lorakit.errors import ConfigError


def parse_weighted(text: str) -> tuple[str, float]:
    """An adapter and its weight: 'a:0.7' is a at 0.7, 'a' is a at 1.

    What exists as a path by its whole text is that path, whatever its name ends with.

    Raises:
        ConfigError: nothing stands before the colon, or no number after it.
    """
    name, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        value = float(weight)
    except ValueError:
        if "/" in weight or "\\" in weight:  # of a path that is not there
            return text, 1.0
        raise ConfigError(
            f"{text!r}: the weight {weight!r} is no number; write NAME:WEIGHT, such as {name}:0.7"
        ) from None
    if not name:
        raise ConfigError(f"{text!r} names no adapter: write NAME:WEIGHT, such as invoices:0.7")
    return name, value
