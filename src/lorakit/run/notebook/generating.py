"""`lorakit.generate` for Python and notebooks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from torch import nn

from lorakit.data import Example, encode_prompt
from lorakit.errors import ConfigError
from lorakit.execution.generate import generate as complete
from lorakit.run.notebook.given import BASE, Base, config_of, session_of
from lorakit.run.session import open_adapted

_OPTIONS = (*BASE, "system", "template", "template_option", "max_new_tokens", "store")


@overload
def generate(model: Base, prompts: str, **options: Any) -> str: ...
@overload
def generate(model: Base, prompts: Sequence[str], **options: Any) -> list[str]: ...
def generate(
    model: Base,
    prompts: str | Sequence[str],
    *,
    tokenizer: Any = None,
    adapter: str | Path | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    force: bool = False,
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
        model: a name, a folder or a `ModelSpec`; or a loaded model, with or without pairs.
        prompts: a text, or several.
        tokenizer: of a loaded model.
        adapter: a folder or a name in the store, where `model` is not loaded yet.
        temperature: 0 takes the likeliest token each time.
        top_p: sample from the likeliest tokens that hold this share of probability.
        top_k: sample from this many likeliest tokens; 0 from all.
        seed: of the sampling.
        force: use the adapter although it was trained on another base.
        **options: revision, device, dtype, trust_remote_code, system, template,
            template_option, max_new_tokens, store; as on the command line.

    Returns:
        A text for one prompt, a list of texts for a list, in its order.

    Raises:
        InputError: an option is unknown, or something given cannot be used.
    """
    config = config_of("generate", model, options, _OPTIONS)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ConfigError("generate: a prompt is empty or no text: give a text, or a list of texts")
    if isinstance(model, nn.Module):
        if adapter is not None:
            raise ConfigError("generate: attach the adapter with lorakit.load_adapter(model, …)")
        session = session_of(model, tokenizer, config.data)
    else:
        session = open_adapted(
            config.model, adapter, config.data, store=config.output.store, force=force
        )
    ids = [
        encode_prompt(
            Example(f"prompt {number}", prompt=text), session.tokenizer, session.template
        ).tolist()
        for number, text in enumerate(texts, 1)
    ]
    made = complete(
        session.model,
        session.tokenizer,
        ids,
        template=session.template,
        max_new_tokens=config.output.max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
    )
    answers = [completion.text for completion in made]
    return answers[0] if isinstance(prompts, str) else answers
