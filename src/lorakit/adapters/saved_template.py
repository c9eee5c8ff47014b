"""The chat template that a trainer saved beside an adapter, as transformers would read it there.

TRL, unsloth, LLaMA-Factory and axolotl save the tokenizer they trained with into the adapter's own
folder. Its template may be another than the base's, and the adapter was trained with this one.

    chat_template.jinja                 the default template, from transformers 4.51 on
    additional_chat_templates/*.jinja   further ones by name, beside it
    tokenizer_config.json               before that: `chat_template`, one text or [{name, template}, …]
    chat_template.json                  a processor's (vision-language models) before 4.51
    processor_config.json               a processor's, in 4.43

The first that is there counts, all `.jinja` files as one. A tokenizer of transformers reads the first
three in this order, and a processor the last two.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.adapters.peft_config import read_json
from lorakit.errors import AdapterError
from lorakit.files.pointers import pointer_problem

DEFAULT = "default"
_FILE, _MORE = "chat_template.jinja", "additional_chat_templates"
_JSON = ("tokenizer_config.json", "chat_template.json", "processor_config.json")
_KEY = "chat_template"


def saved_chat_template(folder: str | Path) -> str | dict[str, str] | None:
    """The chat template in an adapter's folder.

    Args:
        folder: of the adapter; other files than those above are not looked at.

    Returns:
        The Jinja source; several by name, `default` and `tool_use` among the usual ones; None where
        the folder holds none, or an empty one.

    Raises:
        AdapterError: a file is no UTF-8, no JSON, or its template is neither a text nor named texts.
    """
    folder = Path(folder)
    named = {DEFAULT: folder / _FILE} if (folder / _FILE).is_file() else {}
    named |= {file.stem: file for file in sorted((folder / _MORE).glob("*.jinja"))}
    if named:
        return _plain({name: _text(file) for name, file in named.items()})
    for name in _JSON:
        if (folder / name).is_file() and (found := _in_json(folder / name)):
            return found
    return None


def _in_json(path: Path) -> str | dict[str, str] | None:
    value = read_json(path).get(_KEY)
    match value:
        case None:
            return None
        case str():
            return _plain({DEFAULT: value})
        case list():
            return _plain(dict(_entry(path, entry) for entry in value))
        case Mapping():
            return _plain(dict(_entry(path, {"name": k, "template": value[k]}) for k in value))
    raise AdapterError(f"{path}: {_KEY} is a {type(value).__name__}, {_EXPECTED}")


_EXPECTED = "not a Jinja text or a list of {'name': …, 'template': …}"


def _entry(path: Path, entry: Any) -> tuple[str, str]:
    name = entry.get("name") if isinstance(entry, Mapping) else None
    source = entry.get("template") if isinstance(entry, Mapping) else None
    if not isinstance(name, str) or not isinstance(source, str):
        raise AdapterError(f"{path}: {_KEY} holds {str(entry)[:60]!r}, {_EXPECTED}")
    return name, source


def _plain(named: Mapping[str, str]) -> str | dict[str, str] | None:
    """One text where there is the default alone; without those that are empty."""
    full = {name: source for name, source in named.items() if source.strip()}
    return full.get(DEFAULT) if full.keys() <= {DEFAULT} else full


def _text(path: Path) -> str:
    if problem := pointer_problem(path):
        raise AdapterError(f"{path} {problem}")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise AdapterError(f"{path} is no UTF-8 text: {error}") from error
