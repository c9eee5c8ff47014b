"""Small chat templates that treat turns as those of known model families do; none is a copy."""

GEN = "{% if add_generation_prompt %}"


def _turns(assistant: str, other: str, prompt: str, lead: str = "") -> str:
    return (
        f"{lead}{{% for m in messages %}}{{% if m['role'] == 'assistant' %}}{assistant}"
        f"{{% else %}}{other}{{% endif %}}{{% endfor %}}{GEN}{prompt}{{% endif %}}"
    )


_SAY = "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
_SPLIT = (
    "{% set said = m['content'].split('</think>')[-1].lstrip('\\n') %}"
    "{% set thought = m['reasoning_content'] if m['reasoning_content'] else "
    "(m['content'].split('</think>')[0].split('<think>')[-1].strip('\\n') "
    "if '</think>' in m['content'] else '') %}"
)

FAMILIES = {
    # Every turn alike.
    "chatml": _turns(_SAY, _SAY, "{{ '<|im_start|>assistant\\n' }}"),
    # Thinking stays only in the last answer, which has an empty block where it has none.
    "last answer thinks": _turns(
        _SPLIT + "{{ '<|im_start|>assistant\\n' }}{% if loop.last %}"
        "{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}{{ said + '<|im_end|>\\n' }}",
        _SAY,
        "{{ '<|im_start|>assistant\\n' }}",
    ),
    # The generation prompt opens the thinking; what is written of an answer has none.
    "prompt opens thinking": _turns(
        _SPLIT + "{{ '<A>' + said + '<E>' }}",
        "{{ '<U>' + m['content'] }}",
        "{{ '<A><think>\\n' }}",
    ),
    # The generation prompt opens what an answer without thinking only closes.
    "answer closes thinking": _turns(
        _SPLIT + "{{ '<A>' }}{% if thought %}{{ '<think>' + thought }}{% endif %}"
        "{{ '</think>' + said }}",
        "{{ '<U>' + m['content'] }}",
        "{{ '<A><think>' }}",
    ),
    # The last answer ends with another token than the earlier ones.
    "another last end": _turns(
        "{{ '<A>' }}{% if m['thinking'] and loop.last %}{{ '<H>think<M>' + m['thinking'] + '<X><A>' }}"
        "{% endif %}{{ '<H>final<M>' + m['content'] }}{{ '<E>' if loop.last else '<X>' }}",
        "{{ '<U>' + m['content'] + '<X>' }}",
        "{{ '<A>' }}",
    ),
    # The next turn's own header ends an answer.
    "ended by the next turn": _turns(
        "{{ '<A>\\n' + m['content'] }}", "{{ '<U>\\n' + m['content'] }}", "{{ '<A>\\n' }}"
    ),
    # The end of an answer is written with the next turn, before its header.
    "ended late": _turns(
        "{{ '<A>' + m['content'] }}",
        "{% if loop.index0 and messages[loop.index0 - 1]['role'] == 'assistant' %}{{ '<E>' }}"
        "{% endif %}{{ '<U>' + m['content'] + '<X>' }}",
        "{{ '<A>' }}",
    ),
    # No generation prompt; the system text goes into the last question.
    "instructions": (
        "{% set ns = namespace(s='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
        "{% set ns.s = m['content'] + '\\n\\n' %}{% elif m['role'] == 'user' %}"
        "{% set last = messages[-1] == m or (messages[-1]['role'] == 'assistant' and "
        "messages[-2] == m) %}{{ '<U>' + (ns.s if last else '') + m['content'] + '<X>' }}"
        "{% else %}{{ m['content'] + '<E>' }}{% endif %}{% endfor %}"
    ),
    # The generation prompt is always written, asked for or not.
    "always a prompt": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<A><H>' + m['content'] + '<M>' }}"
        "{% else %}{{ '<U>' + m['content'] }}{% endif %}{{ '<|im_end|>' }}{% endfor %}{{ '<A><X>' }}"
    ),
    # Content is a list of parts.
    "parts": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% for p in m['content'] %}"
        "{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\\n' }}"
        "{% endfor %}" + GEN + "{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    # Plain words, and no token that ends an answer.
    "words": _turns(
        "{{ 'Bot: ' + m['content'] + '\\n\\n' }}",
        "{{ m['role'] + ': ' + m['content'] + '\\n\\n' }}",
        "{{ 'Bot:' }}",
    ),
    # The answers are marked, with the header inside the mark.
    "marked": _turns(
        "{% generation %}{{ '<|im_start|>assistant\\n' + m['content'] + '<|im_end|>' }}"
        "{% endgeneration %}{{ '\\n' }}",
        _SAY,
        "{{ '<|im_start|>assistant\\n' }}",
    ),
}

SPECIALS = ["<A>", "<U>", "<E>", "<X>", "<H>", "<M>"]

CALLS = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}{% for c in m['tool_calls'] %}"
    "{{ '<tool_call>' + c['function']['name'] + ' ' + ARGS + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}" + GEN + "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Tool calls; ARGS stands for how the arguments are written."""
