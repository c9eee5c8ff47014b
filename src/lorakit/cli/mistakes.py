"""A command line with names that lorakit has not -> one error with the whole line that works."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorakit.cli.bare_words import SWITCH_WORDS, check_value, check_words, is_rows
from lorakit.errors import ConfigError
from lorakit.files.wording import command_line
from lorakit.other_names import CHOICES, VALUES, WITHOUT, command_meant, option_meant, plain

_FILES = ("--data", "--eval-data")


@dataclass
class _Line:
    """The line as it should have been, which of its words are bare, and what was not known in it."""

    words: list[str]
    bare: list[int] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    meant: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def check_command(arguments: Sequence[str], commands: Mapping[str, Any]) -> None:
    """Refuse a command that there is not.

    Args:
        arguments: the words after `lorakit`.
        commands: each command by name; a group is a mapping of its own commands.

    Raises:
        ConfigError: there is none of that name; the message has the line that is meant.
    """
    at, known, path = 0, commands, list[str]()
    while at < len(arguments):
        name = arguments[at]
        if name.startswith("-"):
            return
        if name not in known:
            rest = list(arguments[at + 1 :])
            raise ConfigError(_no_command(name, path, known, rest, commands))
        if not isinstance(known[name], Mapping):
            return
        known, path, at = known[name], [*path, name], at + 1


def _no_command(
    name: str, path: list[str], known: Mapping[str, Any], rest: list[str], top: Mapping[str, Any]
) -> str:
    here = " ".join(["lorakit", *path])
    meant = command_meant(name, known)
    before = path
    if meant is None or (not path and meant not in known):
        for group, inner in top.items():
            if not path and isinstance(inner, Mapping) and (found := command_meant(name, inner)):
                meant, before = found, [group]
    if name == "help":
        return f"there is no command {name!r}: `{command_line(*path, '--help')}` lists the commands"
    if meant is None:
        return (
            f"there is no command {name!r}: `{here}` has {', '.join(known)}; "
            f"`{command_line(*path, '--help')}` explains them"
        )
    return (
        f"there is no command {name!r}: did you mean {meant}? {command_line(*before, meant, *rest)}"
    )


def mended(
    command: Sequence[str], arguments: Sequence[str], parameters: Sequence[Any]
) -> list[str]:
    """The words after a command's name, with several files after one --data read as such.

    Args:
        command: its name, and that of its group before it.
        arguments: the words after them.
        parameters: the command's own, as click has them.

    Raises:
        ConfigError: an option is not known; the message has the whole line that works.
    """
    options = {
        flag: p for p in parameters for flag in (*p.opts, *p.secondary_opts) if flag[:1] == "-"
    }
    takes = {flag for flag, p in options.items() if not (p.is_flag or p.count)}
    line, at = _Line([]), 0
    while at < len(arguments):
        word, at = arguments[at], at + 1
        if word == "--":
            line.words += arguments[at - 1 :]
            break
        flag, equals, value = word.partition("=")
        if not word.startswith("-") or word == "-" or _is_number(word):
            line.bare.append(len(line.words))
            line.words.append(word)
        elif flag in options:
            line.words.append(word)
            if flag in takes and not equals and at < len(arguments):
                value = arguments[at]
                line.words.append(value)
                at += 1
            check_value(flag, options[flag], value)
            while flag in _FILES and at < len(arguments) and is_rows(arguments[at]):
                line.words += [flag, arguments[at]]
                at += 1
        elif flag in ("-h", "--help"):
            return list(arguments)
        else:
            values = [value] if equals else []
            while not equals and at < len(arguments) and _is_value(arguments[at], flag, values):
                values.append(arguments[at])
                at += 1
            _replace(line, flag, values, options, parameters)
    if line.unknown:
        raise ConfigError(_message(line, command))
    check_words(command, line.words, line.bare, parameters)
    return line.words


def _message(line: _Line, command: Sequence[str]) -> str:
    unknown = " and no ".join(dict.fromkeys(line.unknown))
    parts = [f"`{command_line(*command)}` has no {unknown}"]
    if line.meant:
        parts.append(f"did you mean {' and '.join(dict.fromkeys(line.meant))}?")
    parts += dict.fromkeys(line.reasons)
    whole = command_line(*command, *line.words)
    if len(line.meant) + sum(plain(flag) in WITHOUT for flag in line.unknown) < len(line.unknown):
        return f"{'; '.join(parts)}. `{command_line(*command, '--help')}` lists what there is"
    return f"{'; '.join(parts)}\n{whole}"


def _replace(
    line: _Line,
    flag: str,
    values: list[str],
    options: Mapping[str, Any],
    parameters: Sequence[Any],
) -> None:
    """Put what is meant by an unknown flag into the line."""
    line.unknown.append(flag)
    name = plain(flag)
    by_name = {plain(known): known for known in options if known.startswith("--")}
    chosen = CHOICES.get(name, {}).get("".join(values).lower())
    if name in WITHOUT and (chosen is None or chosen[0] not in by_name):
        line.reasons.append(f"{flag} is left out: {WITHOUT[name]}")
        return
    chosen = chosen or VALUES.get(name)
    if chosen is not None and chosen[0] in by_name:
        meant, value = chosen
        line.meant.append(f"{by_name[meant]} {value}")
        line.words += [by_name[meant], value]
        return
    arguments = {plain(p.name or ""): p for p in parameters if p.param_type_name == "argument"}
    found = option_meant(flag, [*by_name, *arguments])
    if found in arguments:
        line.meant.append(f"the {found} without a flag before it")
        line.words += values
    elif found is None:
        line.reasons.append(f"nothing here is like {flag}")
    elif options[by_name[found]].is_flag:
        line.meant.append(by_name[found])
        off = [v for v in values if v.lower() in ("false", "0", "no")]
        line.words.append(by_name[found].replace("--", "--no-", 1) if off else by_name[found])
        line.words += [v for v in values if v.lower() not in SWITCH_WORDS]
    else:
        line.meant.append(by_name[found])
        whole = options[by_name[found]].metavar == "INT"
        for value in values or ["VALUE"]:
            word = _largest(value) if whole else _worded(found, value)
            line.words += [by_name[found], word]


def _largest(value: str) -> str:
    """The largest of several whole numbers, where an option takes one."""
    numbers = value.split(",")
    return max(numbers, key=int) if all(n.strip().isdecimal() for n in numbers) else value


def _worded(option: str, value: str) -> str:
    """A value as lorakit writes it, where another program writes it otherwise."""
    if option == "activation_checkpointing" and value.lower() in (
        "true",
        "1",
        "yes",
        "unsloth",
        "value",
    ):
        return "on"
    if option == "device" and value.isdecimal():
        return f"cuda:{value}"
    return value


def _is_value(word: str, flag: str, values: Sequence[str]) -> bool:
    """Whether a word belongs to the unknown flag before it: one does, and further files of rows."""
    if word.startswith("-") and word != "-" and not _is_number(word):
        return False
    return not values or (is_rows(word) and is_rows(values[0]))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
