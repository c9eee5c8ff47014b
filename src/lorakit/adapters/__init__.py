"""An adapter's life on disk. The only room that imports safetensors.

save.py         a model's pairs -> an adapter folder in peft's format
pairs.py        an adapter as a value: pairs by module path, read and written without a model
load.py         an adapter folder -> pairs on a model, every tensor accounted for
info.py         AdapterInfo: what a folder says of itself, read without a model
peft_config.py  adapter_config.json, both ways
refusals.py     what peft can write and lorakit does not do, each with its reason
names.py        a pair's tensor names in peft's format
tensors.py      named tensors in a safetensors file
provenance.py   lorakit.json: which base, which data, which numbers
card.py         README.md, the model card
folders.py      a folder that appears whole or not at all
certify.py      how far a merged model's logits are from its adapter's
hub.py          the Hugging Face hub: pushed privately, pulled with every byte checked
export/         the same adapter for vLLM and llama.cpp, and what each would refuse
imports/        adapters of loralib and mlx-lm
vllm_ranks.py   the ranks that vLLM lays its buffers out for
store/          the adapters of many tasks, their versions, and which name means which
parents.py      what adapters must share to become one, and the record of it
combine.py      several adapters -> one: sums, cuts, TIES, DARE
extract.py      two full models -> an adapter
shrink.py       an adapter of a lower rank
merge.py        W + s·B·A in a new model, and the ordinary model folder of it
merge_files.py  the same from file to file, block of rows by block of rows
shards.py       tensors of model folders in pieces: read by rows, written in a stream
model_folder.py what a merged folder takes over beside the weights
dequantize.py   a quantized model folder -> an ordinary one

The names below are loaded when first used: the store keeps and lists folders without torch.
`certify` is imported from `lorakit.adapters.certify`, whose name the module has.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.adapters.certify import Certificate, Comparison, Tolerance
    from lorakit.adapters.info import AdapterInfo, read_adapter
    from lorakit.adapters.load import load_adapter
    from lorakit.adapters.merge import merged_model, write_merged
    from lorakit.adapters.save import save_adapter

_HOMES = {
    "AdapterInfo": "info",
    "Certificate": "certify",
    "Comparison": "certify",
    "Tolerance": "certify",
    "load_adapter": "load",
    "merged_model": "merge",
    "read_adapter": "info",
    "save_adapter": "save",
    "write_merged": "merge",
}

__all__ = [
    "AdapterInfo",
    "Certificate",
    "Comparison",
    "Tolerance",
    "load_adapter",
    "merged_model",
    "read_adapter",
    "save_adapter",
    "write_merged",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
