"""How sizes, counts and times are worded for people: decimal units, the same everywhere."""

import shlex


def size(number: float) -> str:
    """Bytes in decimal units, as disks and graphics cards are sold.

    >>> size(9_768_960), size(1536), size(16e9), size(12)
    ('9.8 MB', '1.5 kB', '16.0 GB', '12 bytes')
    """
    for unit, power in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= power:
            return f"{number / power:.1f} {unit}"
    return f"{number:.0f} bytes"


def count(number: float) -> str:
    """A whole number, thousands apart.

    >>> count(1234567)
    '1,234,567'
    """
    return f"{number:,.0f}"


def command_line(*words: object) -> str:
    """A command of lorakit as it can be pasted into a shell: every word quoted where that is needed.

    >>> command_line("generate", "--adapter", "my runs/a", "Hi")
    "lorakit generate --adapter 'my runs/a' Hi"
    """
    return shlex.join(["lorakit", *map(str, words)])
