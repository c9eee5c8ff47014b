"""`lorakit.generate` for Python and notebooks: answers to prompts, or to the rows of a file."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, overload

from torch import nn

from lorakit.data.given import as_source
from lorakit.errors import ConfigError
from lorakit.lora import lora_layers
from lorakit.run.notebook.generating import Asked
from lorakit.run.notebook.generating import generate as answer_prompts
from lorakit.run.notebook.given import BASE, Base, config_of, session_of, with_attached
from lorakit.serving.answering.command import AnsweredFile, run_answering
from lorakit.serving.answering.spec import AnswerSpec, prompts_alone

_OPTIONS = (
    *(*BASE, "prompt", "completion", "max_rows", "system", "template", "template_option"),
    *("max_new_tokens", "store"),
)
_OWN = tuple(f.name for f in fields(AnswerSpec))


@overload
def generate(model: Base | None, prompts: Asked, **options: Any) -> str: ...
@overload
def generate(model: Base | None, prompts: Sequence[Asked], **options: Any) -> list[str]: ...
@overload
def generate(
    model: Base | None = None, *, data: Any, out: str | Path, **options: Any
) -> AnsweredFile | None: ...
def generate(
    model: Base | None = None,
    prompts: Asked | Sequence[Asked] | None = None,
    *,
    data: Any = None,
    out: str | Path | None = None,
    tokenizer: Any = None,
    adapter: str | Path | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    force: bool = False,
    **options: Any,
) -> str | list[str] | AnsweredFile | None:
    """The model's answer to a prompt, its answers to several, or to every row of a file.

    >>> import lorakit
    >>> model, tokenizer = lorakit.load_model("tiny-model")
    >>> answer = lorakit.generate(model, "Hello", tokenizer=tokenizer, max_new_tokens=4)
    >>> answers = lorakit.generate("tiny-model", ["Hello", "Good day"], max_new_tokens=4)
    >>> answers[0] == answer
    True
    >>> rows = [{"prompt": "say lamp", "id": 7}, {"prompt": "say desk", "id": 8}]
    >>> lorakit.generate("tiny-model", data=rows, out="answers.jsonl", max_new_tokens=4).rows
    2

    Args:
        model: a name, a folder or a `ModelSpec`; or a loaded model, with or without pairs. None: the
            base that the adapter was trained on.
        prompts: a text, or several. Where the adapter was trained with a prompt template, a text
            takes the place of its one column; of several columns give a mapping by name.
        data: in place of prompts, rows: a file, a folder or a hub id; or a list of mappings, a
            datasets.Dataset, a pandas.DataFrame.
        out: with data, the file of answers: .jsonl, .csv, .tsv or .parquet.
        tokenizer: of a loaded model.
        adapter: a folder or a name in the store, where `model` is not loaded yet.
        temperature: 0 takes the likeliest token each time.
        top_p: sample from the likeliest tokens that hold this share of probability.
        top_k: sample from this many likeliest tokens; 0 from all.
        seed: of the sampling.
        force: use the adapter although it was trained on another base.
        **options: revision, device, dtype, trust_remote_code, system, template, template_option,
            max_new_tokens, store; for prompts also prompt_template (False sends the texts as they
            are); for data also prompt, max_rows, resume, answer_column, choices,
            bad_rows; as on the command line.

    Returns:
        A text for one prompt, a list of texts for a list, in its order. For rows what became of them
        (see `lorakit.serving.answering.command.AnsweredFile`); None where a resumed file was
        finished already.

    Raises:
        InputError: an option is unknown, or something given cannot be used.
    """
    sampling: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "force": force,
    }
    if data is None:
        if prompts is None:
            raise ConfigError("generate: give prompts, or data and out")
        if out is not None:
            raise ConfigError("generate: out is for the rows of data")
        given = {**sampling, **options}
        return answer_prompts(model, prompts, tokenizer=tokenizer, adapter=adapter, **given)
    if prompts is not None:
        raise ConfigError("generate: prompts and data are given: the rows of data are the prompts")
    return _answer_rows(model, data, out, tokenizer, adapter, sampling, options)


def _answer_rows(
    model: Base | None,
    data: Any,
    out: str | Path | None,
    tokenizer: Any,
    adapter: str | Path | None,
    sampling: Mapping[str, Any],
    options: Mapping[str, Any],
) -> AnsweredFile | None:
    spec = AnswerSpec(out=None if out is None else str(out), **_own(options))
    given = {name: value for name, value in options.items() if name not in _OWN}
    config = config_of("generate", model, prompts_alone(given), (*_OPTIONS, *_OWN))
    config = replace(config, data=replace(config.data, data=(as_source(data),)))
    held = None
    if isinstance(model, nn.Module):
        if adapter is not None:
            raise ConfigError("generate: attach the adapter with lorakit.load_adapter(model, …)")
        held = (session_of(model, tokenizer, config.data), _pairs_sha256(model))
        config = with_attached(config, model)
    return run_answering(config, adapter, spec, **sampling, held=held)


def _own(options: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in options.items() if name in _OWN}
    if "choices" in own:
        own["choices"] = tuple(own["choices"])
    return own


def _pairs_sha256(model: nn.Module) -> str:
    """What identifies the pairs on a model: other elements make other answers."""
    digest = hashlib.sha256()
    for path, layer in sorted(lora_layers(model).items()):
        digest.update(f"{path} {layer.scale!r} ".encode())
        for matrix in (layer.A, layer.B):
            digest.update(matrix.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
