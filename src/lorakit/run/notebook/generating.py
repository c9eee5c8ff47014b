"""`lorakit.generate` for Python and notebooks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from torch import nn

from lorakit.adapters.attached import attached_mapping
from lorakit.data import Example, PromptForm, encode_prompt
from lorakit.errors import ConfigError
from lorakit.execution.generate import generate as complete
from lorakit.run.answer_limit import answer_limit
from lorakit.run.notebook.given import BASE, Base, config_of, session_of
from lorakit.run.recorded import with_recorded
from lorakit.run.session import open_adapted

_OPTIONS = (*BASE, "system", "template", "template_option", "max_new_tokens", "store")


Asked = str | Mapping[str, Any]
"""A typed text, or the columns of a prompt template by name."""


@overload
def generate(model: Base | None, prompts: Asked, **options: Any) -> str: ...
@overload
def generate(model: Base | None, prompts: Sequence[Asked], **options: Any) -> list[str]: ...
def generate(
    model: Base | None,
    prompts: Asked | Sequence[Asked],
    *,
    tokenizer: Any = None,
    adapter: str | Path | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    force: bool = False,
    prompt_template: bool = True,
    **options: Any,
) -> str | list[str]:
    """The model's answer to a prompt, or its answers to several.

    >>> import lorakit
    >>> model, tokenizer = lorakit.load_model("tiny-model")
    >>> answer = lorakit.generate(model, "Hello", tokenizer=tokenizer, max_new_tokens=4)
    >>> answers = lorakit.generate("tiny-model", ["Hello", "Good day"], max_new_tokens=4)
    >>> answers[0] == answer
    True

    Args:
        model: a name, a folder or a `ModelSpec`; or a loaded model, with or without pairs. None takes
            the base that the adapter records.
        prompts: a text, or several. Where the adapter was trained with a prompt template, a text
            takes the place of its one column; of several columns give a mapping by name.
        tokenizer: of a loaded model.
        adapter: a folder or a name in the store, where `model` is not loaded yet.
        temperature: 0 takes the likeliest token each time.
        top_p: sample from the likeliest tokens that hold this share of probability.
        top_k: sample from this many likeliest tokens; 0 from all.
        seed: of the sampling.
        force: use the adapter although it was trained on another base.
        prompt_template: False sends the texts as they are.
        **options: revision, device, dtype, trust_remote_code, system, template,
            template_option, max_new_tokens, store; as on the command line.

    Returns:
        A text for one prompt, a list of texts for a list, in its order.

    Raises:
        InputError: an option is unknown, or something given cannot be used.
    """
    config = config_of("generate", model, options, _OPTIONS)
    single = isinstance(prompts, str | Mapping)
    asked: list[Any] = [prompts] if single else list(prompts)
    if not asked or not all(map(_is_asked, asked)):
        raise ConfigError("generate: a prompt is empty or no text: give a text, or a list of texts")
    if isinstance(model, nn.Module):
        if adapter is not None:
            raise ConfigError("generate: attach the adapter with lorakit.load_adapter(model, …)")
        session = session_of(model, tokenizer, config.data)
        form = PromptForm(attached_mapping(model).get("prompt"))
    else:
        config = with_recorded(config, adapter, packing=True)
        session = open_adapted(
            config.model, adapter, config.data, store=config.output.store, force=force
        )
        form = PromptForm.of(config.data)
    form = form if prompt_template else PromptForm()
    ids = [
        encode_prompt(_example(form, one, number), session.tokenizer, session.template).tolist()
        for number, one in enumerate(asked, 1)
    ]
    made = complete(
        session.model,
        session.tokenizer,
        ids,
        template=session.template,
        max_new_tokens=answer_limit(config, session.adapter),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
    )
    answers = [completion.text for completion in made]
    return answers[0] if single else answers


def _is_asked(one: Any) -> bool:
    return isinstance(one, Mapping) or (isinstance(one, str) and bool(one.strip()))


def _example(form: PromptForm, asked: Asked, number: int) -> Example:
    origin = f"prompt {number}"
    if isinstance(asked, Mapping):
        return form.filled(asked, origin)
    hint = " as a mapping; prompt_template=False sends the text as it is"
    return form.typed(asked, origin, hint)
