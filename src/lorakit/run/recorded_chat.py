"""The chat template that adapters were trained with, and the tokens that end an answer by it."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorakit.adapters import AdapterInfo
from lorakit.data import Template
from lorakit.data.ends import end_of_turn
from lorakit.models import ModelSpec, load_tokenizer
from lorakit.run.recorded import prompt_form
from lorakit.run.session import recorded_template


@dataclass(frozen=True)
class RecordedChat:
    """What a merged folder or an exported file has to say of conversations.

    Attributes:
        template: as it was trained with.
        ends: ids that end an answer: by the template, then the tokenizer's eos.
    """

    template: Template
    ends: tuple[int, ...]


def prompt_notes(adapters: Sequence[AdapterInfo]) -> tuple[str, ...]:
    """What whoever asks a merged or exported model has to know of its prompts, in sentences.

    A chat template has no place for a mapping of columns, and other programs know of none: they send
    what they are sent.
    """
    forms = dict.fromkeys(prompt_form(info).written for info in adapters)
    written = [repr(form) for form in forms if form]
    if not written:
        return ()
    return (
        f"prompts were trained as {' and '.join(written)}: no file says so to other programs, so write "
        "them in this way yourself (lorakit serve, generate and chat do it by the adapter's record)",
    )


def recorded_chat(
    adapters: Sequence[AdapterInfo], spec: ModelSpec
) -> tuple[RecordedChat | None, tuple[str, ...]]:
    """The one template of all adapters that have one, and what is to be said of it.

    Returns:
        None where no template is known, or where they differ; and sentences for the user.

    Raises:
        AdapterError: a recorded template is damaged.
        ModelError: the base's tokenizer cannot be read.
    """
    recorded = [recorded_template(info, None) for info in adapters]
    templates = list(dict.fromkeys(template for template in recorded if template is not None))
    if not templates:
        return None, ()
    if len(templates) > 1:
        return None, (
            "the adapters were trained with different chat templates: the base's is kept",
        )
    template, tokenizer = templates[0], load_tokenizer(spec)
    taught, eos = end_of_turn(tokenizer, template), tokenizer.eos_token_id
    chat = RecordedChat(template, (*dict.fromkeys([*taught, *([] if eos is None else [eos])]),))
    if template.kind == "raw":
        return chat, ("the adapter was trained without a chat template: the base's is kept",)
    ends = ", ".join(tokenizer.convert_ids_to_tokens(list(taught or chat.ends)))
    return chat, (f"the adapter's chat template goes with it; answers end at {ends}",)
