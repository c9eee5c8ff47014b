"""How an adapter is asked: the command that is printed where one was made."""

import json
from pathlib import Path

from lorakit.files.wording import command_line


def asking(adapter: str | Path, prompt: str | None = None) -> str:
    """The command that asks an adapter.

    Args:
        adapter: its folder, or its name in the store.
        prompt: the mapping by which rows became prompts; one of several columns is asked with an
            object that names them.
    """
    from lorakit.data import PromptForm

    columns = PromptForm(prompt).columns
    text = "your prompt"
    if len(columns) > 1:
        text = json.dumps({name: f"your {name}" for name in columns}, ensure_ascii=False)
    return command_line("generate", "--adapter", adapter, text)
