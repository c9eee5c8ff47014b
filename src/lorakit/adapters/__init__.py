"""An adapter's life on disk. The only room that imports safetensors.

save.py         a model's pairs -> an adapter folder in peft's format
pairs.py        an adapter as a value: pairs by module path, read and written without a model
load.py         an adapter folder -> pairs on a model, every tensor accounted for
info.py         AdapterInfo: what a folder says of itself, read without a model
peft_config.py  adapter_config.json, both ways
refusals.py     what peft can write and lorakit does not do, each with its reason
names.py        a pair's tensor names in peft's format
saved_template.py  the chat template that a trainer saved beside the adapter
provenance.py   lorakit.json: which base, which data, which numbers
card.py         README.md, the model card
hub.py          the Hugging Face hub: pushed privately, pulled with every byte checked
export/         the same adapter for vLLM and llama.cpp, and what each would refuse
imports/        adapters of loralib and mlx-lm
vllm_ranks.py   the ranks that vLLM lays its buffers out for
store/          the adapters of many tasks, their versions, and which name means which
parents.py      what adapters must share to become one, and the record of it
combine.py      several adapters -> one: sums, cuts, TIES, DARE
extract.py      two full models -> an adapter
shrink.py       an adapter of a lower rank

The names below are loaded when first used: the store keeps and lists folders without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.adapters.info import AdapterInfo, read_adapter
    from lorakit.adapters.load import load_adapter
    from lorakit.adapters.save import save_adapter

_HOMES = {
    "AdapterInfo": "info",
    "load_adapter": "load",
    "read_adapter": "info",
    "save_adapter": "save",
}

__all__ = [
    "AdapterInfo",
    "load_adapter",
    "read_adapter",
    "save_adapter",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
