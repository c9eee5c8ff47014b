"""`lorakit.export` for Python and notebooks."""

from pathlib import Path
from typing import Any

from torch import nn

from lorakit.run.commands.exporting import Exported, Form, Kind, run_export
from lorakit.run.notebook.given import BASE, Adapter, Base, adapter_folders, config_of

_OPTIONS = (*(name for name in BASE if name != "dtype"), "store")


def export(
    adapter: Adapter,
    to: Form,
    out: str | Path,
    *,
    model: Base | None = None,
    kind: Kind | None = None,
    quantize: str | None = None,
    force: bool = False,
    **options: Any,
) -> Exported:
    """Write an adapter for another runtime, so that it computes the same there.

    >>> import lorakit
    >>> model, tokenizer = lorakit.load_model("tiny-model")
    >>> plan = lorakit.attach(model, lorakit.LoraSpec(rank=2))
    >>> lorakit.export(model, "gguf", "adapter.gguf").path.name
    'adapter.gguf'

    Args:
        adapter: a folder, a name in the store, or a model with pairs attached.
        to: 'peft' (the format as it is), 'vllm' (one rank and one scale for all modules), 'gguf'
            (an adapter file for llama.cpp), 'gguf-merged' (base and adapter in one model file),
            'ollama' (a folder with such a file and a Modelfile).
        out: the new folder (peft, vllm, ollama) or file (gguf, gguf-merged).
        model: the base, for the forms of GGUF. By default the one that a given model was
            loaded from, and the built-in model otherwise.
        kind: number format of a GGUF file: f32, f16, bf16, q8_0; by default f32, for Ollama f16.
        quantize: a type of llama.cpp's quantizer for a whole model, such as Q4_K_M; not with `kind`.
        force: use the adapter although it was trained on another base.
        **options: revision, device, trust_remote_code, store; as on the command line.

    Returns:
        The path, and what is to be said about it.

    Raises:
        InputError: an option is unknown, or the runtime has no place for the adapter.
        CertificateError: the merged model differs by more than the tolerance.
    """
    base = model or (adapter if isinstance(adapter, nn.Module) else None)
    config = config_of("export", base, options, _OPTIONS)
    with adapter_folders([adapter]) as (folder,):
        return run_export(
            config,
            adapter=folder,
            form=to,
            out=Path(out),
            kind=kind,
            quantize=quantize,
            force=force,
        )
