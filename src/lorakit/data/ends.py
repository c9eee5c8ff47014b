"""Which tokens end an answer: one definition for training, generation, serving and exports."""

from functools import lru_cache

from lorakit.data.chat import chat_format
from lorakit.data.forms import PROBE_TOOLS
from lorakit.data.shapes import Example, Message
from lorakit.data.template import Template, Tokenizer
from lorakit.data.turns import Conversation
from lorakit.errors import DataError

_USER: Message = {"role": "user", "content": "question"}
_ANSWER: Message = {"role": "assistant", "content": "answer"}
_CALL = {"id": "abcdef123", "type": "function"}
_CALL_MESSAGE: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{**_CALL, "function": {"name": "find", "arguments": {"town": "Oslo"}}}],
}
_RESULT: Message = {"role": "tool", "name": "find", "tool_call_id": "abcdef123", "content": "{}"}


@lru_cache(maxsize=64)
def end_of_turn(tokenizer: Tokenizer, template: Template) -> tuple[int, ...]:
    """The ids of the tokens that end an answer by a template, in ascending order.

    They are found by writing a few conversations as training would: an answer, an answer before
    another question, a tool call and its result. What `encode` teaches as the last token of an
    answer is among them, or is the tokenizer's eos, which always ends an answer and is not listed
    here unless the template writes it. () for a raw template.
    """
    if template.kind == "raw":
        return ()
    ends: set[str] = set()
    plain: list[tuple[Message, ...]] = [(_USER, _ANSWER), (_USER, _ANSWER, _USER)]
    calling: list[tuple[Message, ...]] = [(_USER, _CALL_MESSAGE), (_USER, _CALL_MESSAGE, _RESULT)]
    for tools, conversations in (((), plain), (tuple(PROBE_TOOLS), calling)):
        specials = chat_format(tokenizer, template, bool(tools)).specials
        for messages in conversations:
            example = Example("end of turn", messages=messages, tools=tools)
            try:
                turn = Conversation(example, messages, tokenizer, template).turn(1)
            except DataError:
                continue  # a template that wants other roles, or knows no tools
            if turn.ended:
                ends.add(next(s for s in specials if turn.answer.endswith(s)))
    ids = tokenizer([*sorted(ends)], add_special_tokens=False)["input_ids"] if ends else []
    return tuple(sorted({int(each[-1]) for each in ids}))
