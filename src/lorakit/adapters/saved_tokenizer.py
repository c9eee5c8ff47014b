"""The tokenizer that a trainer saved beside an adapter: has it tokens that the base has not?

lorakit writes and reads texts by the base's own tokenizer. A trainer that added tokens (`setup_chat_format`
of TRL, `add_special_tokens`) saved another one into the adapter's folder, and the adapter was taught by it.
"""

from pathlib import Path

from torch import nn

from lorakit.adapters.peft_config import read_json
from lorakit.models.load import source_of
from lorakit.models.sources import resolve

_FILE, _OLDER = "tokenizer.json", "added_tokens.json"
_SHOWN = 3


def tokens_note(folder: Path, model: nn.Module) -> str | None:
    """A sentence where the tokenizer in an adapter's folder has tokens that the base's has not.

    Args:
        folder: of the adapter.
        model: the base; None is known of one that `load_model` did not make.

    Raises:
        AdapterError: a file of that tokenizer is no JSON.
    """
    source = source_of(model)
    theirs = added_tokens(folder)
    if source is None or not theirs:
        return None
    base = resolve(source).folder
    known = added_tokens(base) | _vocabulary(base)
    lost = [token for token in theirs if token not in known]
    if not lost:
        return None
    shown = ", ".join(repr(token) for token in lost[:_SHOWN]) + (" …" if len(lost) > _SHOWN else "")
    return (
        f"the tokenizer in the adapter's folder has {len(lost)} tokens that the base's has not "
        f"({shown}); lorakit uses the base's, which reads each of them as several tokens"
    )


def added_tokens(folder: Path) -> dict[str, None]:
    """The tokens beside the vocabulary proper, in the order of the file; none where there is no file."""
    if (folder / _FILE).is_file():
        entries = read_json(folder / _FILE).get("added_tokens") or []
        found = [entry.get("content") for entry in entries if isinstance(entry, dict)]
        return dict.fromkeys(token for token in found if isinstance(token, str))
    if (folder / _OLDER).is_file():
        return dict.fromkeys(read_json(folder / _OLDER))
    return {}


def _vocabulary(folder: Path) -> dict[str, None]:
    """The tokens of the vocabulary proper, where tokenizer.json lists them by name."""
    if not (folder / _FILE).is_file():
        return {}
    model = read_json(folder / _FILE).get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    return dict.fromkeys(vocabulary) if isinstance(vocabulary, dict) else {}
