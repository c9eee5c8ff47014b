"""An adapter for other runtimes: what each can take, written so that it computes the same.

lint.py         what each runtime would refuse or mis-scale, and why
fold.py         scales into B, ranks padded with zeros: the same s·B·A in a plainer form
vllm.py         a folder that every version of vLLM scales alike
families.py     how llama.cpp names and orders a base model's weights
gguf.py         a GGUF adapter for llama.cpp
gguf_model.py   a merged model as a GGUF file, by llama.cpp's own converter
gguf_fields.py  what such a file says of prompts and ends
quantizing.py   the same in fewer bits, by llama.cpp's own quantizer
go_template.py  a chat template as Ollama has them
ollama.py       a Modelfile
"""

from lorakit.adapters.export.gguf import write_gguf_adapter
from lorakit.adapters.export.gguf_model import write_gguf_model
from lorakit.adapters.export.lint import Finding, lint
from lorakit.adapters.export.vllm import vllm_safe

__all__ = ["Finding", "lint", "vllm_safe", "write_gguf_adapter", "write_gguf_model"]
