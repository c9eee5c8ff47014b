"""Words that stand beside a command's options: what the command takes there, or the line that is meant."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorakit.data.formats import kind_of
from lorakit.errors import ConfigError
from lorakit.files.wording import command_line

SWITCH_WORDS = ("true", "false", "1", "0", "yes", "no")
"""What other programs take after a switch."""
_OFF = ("false", "0", "no")
_FOR_ADAPTERS = ("--adapter", "--adapters")


def is_rows(word: str) -> bool:
    """Whether a word names a file of rows that is here."""
    path = Path(word).expanduser()
    return path.is_file() and kind_of(path) is not None


def check_words(
    command: Sequence[str], words: Sequence[str], bare: Sequence[int], parameters: Sequence[Any]
) -> None:
    """Refuse a word that the command has no place for, and a file of rows in place of a run file.

    Args:
        command: its name, and that of its group before it.
        words: the words after them, every option of which is known.
        bare: which of them are neither options nor their values.
        parameters: the command's own, as click has them.

    Raises:
        ConfigError: there is such a word; the message has the line that is meant, where one can be told.
    """
    places = [p for p in parameters if p.param_type_name == "argument"]
    flags = [p for p in parameters if p.param_type_name == "option"]
    options = {flag: p for p in flags for flag in (*p.opts, *p.secondary_opts)}
    endless = any(p.nargs == -1 for p in places)
    room = len(words) if endless else sum(p.nargs for p in places)
    for number, at in enumerate(bare):
        word, before = words[at], words[at - 1] if at else ""
        switch = before in options and options[before].is_flag
        if switch and word.lower() in SWITCH_WORDS:
            off = f"--no-{before.removeprefix('--')}"
            given = [off] if word.lower() in _OFF and off in options else []
            if word.lower() not in _OFF:
                given = [before]
            line = [*words[: at - 1], *given, *words[at + 1 :]]
            raise ConfigError(
                f"{before} is a switch and takes no value ({word}): write\n{command_line(*command, *line)}"
            )
        run_file = number < len(places) and places[number].name == "config"
        if run_file and is_rows(word) and "--data" in options:
            line = [*words[:at], "--data", *words[at:]]
            raise ConfigError(
                f"{word} holds rows, and a run file holds options: did you mean --data?\n"
                f"{command_line(*command, *line)}"
            )
        if number >= room:
            raise ConfigError(_too_many(command, words, at, room, options))


def _too_many(
    command: Sequence[str], words: Sequence[str], at: int, room: int, options: dict[str, Any]
) -> str:
    word, here = words[at], command_line(*command)
    takes = "no word" if room == 0 else "one word" if room == 1 else f"{room} words"
    what = f"`{here}` takes {takes} beside its options, and {word!r} is one too many"
    adapter = next((flag for flag in _FOR_ADAPTERS if flag in options), None)
    flag = "--data" if is_rows(word) and "--data" in options else adapter
    if flag is None or flag in words:
        return f"{what}: `{here} --help` lists what there is"
    line = command_line(*command, *words[:at], flag, *words[at:])
    return f"{what}; did you mean {flag}?\n{line}"
