"""The answer of a row as the template writes it: the tokens that a perfect model would generate."""

from lorakit.data.encode import messages_of, tokenize
from lorakit.data.shapes import Example
from lorakit.data.template import Template, Tokenizer
from lorakit.data.turns import Conversation
from lorakit.errors import DataError


def encode_answer(example: Example, tokenizer: Tokenizer, template: Template) -> list[int]:
    """The tokens after `encode_prompt` of the same example, as `encode` has them in training.

    A chat template's end of turn is the last of them where it writes one; an eos that training adds
    is not.

    Raises:
        DataError: the example has no answer, or the template refuses it.
    """
    if example.answer is None:
        raise DataError(f"{example.origin}: the row has no answer")
    if template.kind == "raw":
        segments = [example.prompt or "", str(example.completion)]
    else:
        messages = messages_of(example, template)
        at = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
        conversation = Conversation(example, messages, tokenizer, template)
        segments = [segment.text for segment in conversation.prompt_segments(at)]
        segments.append(conversation.turn(at).answer)
    ((ids, counts),) = tokenize([segments], tokenizer)
    return ids[sum(counts[:-1]) :]
