"""A folder that Ollama makes a model of: a merged GGUF file and a Modelfile.

By Ollama's sources of August 2026 (0.33 release candidates). A Modelfile's TEMPLATE is rendered by
Ollama and the file's Jinja template is not read, unless that one can tools or thinking and the Go
template cannot; both are the recorded one here. Without TEMPLATE, `ollama create` takes one of its
own whose Jinja source is less than 100 edits away, with its own stop texts: a template with another
end token would be replaced by one without. So a template that has no Go form is refused.
"""

from collections.abc import Sequence

from jinja2 import TemplateError

from lorakit.adapters.export.go_template import (
    GoTemplate,
    Message,
    NoGoFormError,
    Render,
    derive,
    printable,
)
from lorakit.data.template import Template, Tokenizer
from lorakit.errors import AdapterError, ModelError

# Ollama writes the prompts of these by code of its own, whatever a Modelfile says.
_OWN_CODE = ("gemma4", "gpt_oss", "laguna", "nemotron_h")
_INSTEAD = (
    "lorakit export --to gguf-merged writes the same model with the template itself in it, which "
    "llama-server renders"
)
# What Go's templates cannot do; Ollama has then another prompt for such messages alone.
_CANNOT: dict[str, list[Message]] = {
    "spaces around a message, which the template takes away": [
        {"role": "user", "content": "  question \n"}
    ],
    "<think> texts in earlier answers, which the template leaves out": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nb\n</think>\n\nc"},
        {"role": "user", "content": "d"},
    ],
}


def check_family(model_type: str) -> None:
    """See that Ollama would render a Modelfile's template for models of this family.

    Raises:
        ModelError: it would not.
    """
    if model_type.startswith(_OWN_CODE):
        raise ModelError(
            f"Ollama writes the prompts of {model_type!r} models by code of its own and reads no "
            f"template, so its answers would not be the adapter's; {_INSTEAD}"
        )


def go_template(
    tokenizer: Tokenizer, template: Template
) -> tuple[GoTemplate | None, tuple[str, ...]]:
    """A chat template in Go's form, and what is to be said of it; None for a raw one.

    Raises:
        AdapterError: it has no Go form, or the text of a prompt depends on the day.
    """
    if template.kind == "raw":
        return None, ()
    source = template.baked()
    render = _renderer(tokenizer, source)
    question: list[Message] = [{"role": "user", "content": "question"}]
    clock = "strftime_now"
    if clock in source:
        still = _renderer(tokenizer, source.replace(clock, "no_clock_here"))
        if still(question, True) != render(question, True):
            raise AdapterError(
                "the chat template writes the date of the day, which would stand still in Ollama's "
                "template: train with that variable set (--template-option date_string=...), or "
                f"without Ollama: {_INSTEAD}"
            )
    bos = tokenizer.decode([tokenizer.bos_token_id]) if tokenizer.bos_token_id is not None else ""
    try:
        found = derive(render, bos)
    except NoGoFormError as error:
        raise AdapterError(
            f"the chat template has no form in Go, which Ollama's Modelfile needs: {error}. {_INSTEAD}"
        ) from None
    notes = [
        f"Ollama's Go template keeps {what}"
        for what, messages in _CANNOT.items()
        if (text := render(messages, True)) is not None and text != found.render(messages)
    ]
    if found.system is None:
        notes.append("the chat template takes no system message, and Ollama would drop one unsaid")
    return found, tuple(notes)


def modelfile(
    file: str, found: GoTemplate | None, *, bos: bool, stops: Sequence[str], system: str | None
) -> str:
    """The text of a Modelfile.

    Args:
        file: name of the GGUF file beside it.
        found: the template; None for prompts as they stand.
        bos: whether the template has to write the text that begins a conversation.
        stops: texts that end an answer.
        system: the system message that was trained with.
    """
    lines = [
        f"FROM ./{file}",
        f'TEMPLATE """{found.go(bos=bos) if found else "{{ .Prompt }}"}"""',
        *(f"PARAMETER stop {_quoted(stop)}" for stop in stops),
        "# Greedy, as lorakit generates; some versions penalise repetitions unless told otherwise.",
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
    ]
    # The template holds it too; the parser of Modelfiles would change any other text.
    if system and '"""' not in system and all(map(printable, system)):
        lines.append(f'SYSTEM """{system}"""')
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def _renderer(tokenizer: Tokenizer, source: str) -> Render:
    def render(messages: Sequence[Message], prompt: bool) -> str | None:
        try:
            return str(
                tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    chat_template=source,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError):
            return None

    return render
