"""An adapter's life on disk. The only room that imports safetensors.

save.py         a model's pairs -> an adapter folder in peft's format
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
merge.py        W + s·B·A in a new model, and the ordinary model folder of it
"""

from lorakit.adapters.certify import Certificate, Comparison, Tolerance, certify
from lorakit.adapters.info import AdapterInfo, read_adapter
from lorakit.adapters.load import load_adapter
from lorakit.adapters.merge import merged_model, write_merged
from lorakit.adapters.save import save_adapter

__all__ = [
    "AdapterInfo",
    "Certificate",
    "Comparison",
    "Tolerance",
    "certify",
    "load_adapter",
    "merged_model",
    "read_adapter",
    "save_adapter",
    "write_merged",
]
