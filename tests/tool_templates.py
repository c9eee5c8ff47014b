"""Small chat templates of the three known forms of tool calls, and one of none."""

_TURN = (
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{%- if m.tool_calls %}@CALLS@{% endif %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TOOLS = (
    "{%- if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}"
)


def template(calls):
    return _TOOLS + _TURN.replace("@CALLS@", calls)


def each(head, key, tail, between="\n"):
    """Each call as an object with a name."""
    return (
        "{% for c in m.tool_calls %}{% if not loop.first %}"
        + between
        + "{% endif %}"
        + head
        + '{"name": '
        '"{{ c.function.name }}", "'
        + key
        + '": {{ c.function.arguments | tojson }}}'
        + tail
        + "{% endfor %}"
    )


TEMPLATES = {
    "hermes": template("\n" + each("<tool_call>\n", "arguments", "\n</tool_call>")),
    "llama3_json": template(each("", "parameters", "", "; ")),
    "llama3_tagged": template("<|python_tag|>" + each("", "parameters", "", "; ")),
    "mistral_list": template("[TOOL_CALLS] [" + each("", "arguments", "", ", ") + "]"),
    "mistral_named": template(
        "{% for c in m.tool_calls %}[TOOL_CALLS]{{ c.function.name }}[ARGS]"
        "{{ c.function.arguments | tojson }}{% endfor %}"
    ),
    "other": template("{% for c in m.tool_calls %}<call:{{ c.function.name }}>{% endfor %}"),
    "none": _TURN.replace("@CALLS@", ""),
}
NAMES = {
    "hermes": "hermes",
    "llama3_json": "llama3_json",
    "llama3_tagged": "llama3_json",
    "mistral_list": "mistral",
    "mistral_named": "mistral",
}
# An answer with two calls, as each template writes it.
TWO = {
    "hermes": (
        '<tool_call>\n{"name": "find", "arguments": {"town": "Oslo"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "count", "arguments": {"n": 2}}\n</tool_call>'
    ),
    "llama3_json": (
        '{"name": "find", "parameters": {"town": "Oslo"}}; {"name": "count", "parameters": {"n": 2}}'
    ),
    "llama3_tagged": (
        '<|python_tag|>{"name": "find", "parameters": {"town": "Oslo"}}; '
        '{"name": "count", "parameters": {"n": 2}}'
    ),
    "mistral_list": (
        '[TOOL_CALLS] [{"name": "find", "arguments": {"town": "Oslo"}}, '
        '{"name": "count", "arguments": {"n": 2}}]'
    ),
    "mistral_named": '[TOOL_CALLS]find[ARGS]{"town": "Oslo"}[TOOL_CALLS]count[ARGS]{"n": 2}',
}
MARKS = ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Find a town.",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string", "enum": ["Oslo", "Rome"]}},
                "required": ["town"],
                "additionalProperties": False,
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "count",
            "parameters": {
                "type": "object",
                "properties": {"n": {"$ref": "#/$defs/digit"}},
                "required": ["n"],
                "additionalProperties": False,
                "$defs": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}},
            },
        },
    },
]


def add_marks(tokenizer, special=True):
    """The marks of these forms as tokens of their own."""
    from transformers import AddedToken

    tokenizer.add_tokens([AddedToken(m, special=special) for m in MARKS], special_tokens=special)
    return tokenizer
