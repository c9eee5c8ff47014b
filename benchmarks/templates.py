"""Is a conversation trained as it will be served, whatever the chat template?

    python benchmarks/templates.py FOLDER                  # *.jinja and *.jinja2 in it, and below
    python benchmarks/templates.py FOLDER --only qwen3 --verbose

Nine conversations go through each template. The oracle renders with transformers alone, in each form
in which a template may take messages (text or parts, arguments as object or text, three names of the
thinking), and keeps the form in which least is lost. A conversation is right where, for every answer
after the first message: some sequence holds the prompt as transformers writes it with the generation
prompt, then supervised what transformers writes for that answer, up to a special token; each answer is
supervised once, and nothing else is. Where the rendering lacks text of the row, an error that names it
is right, and with `drop` training is. What the template refuses by itself is counted apart.

The tokenizer is the built-in model's; the special tokens that a template names are added to it.
"""

import argparse
import copy
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorakit.data.encode import encode_examples
from lorakit.data.shapes import Example
from lorakit.data.spec import DROPPABLE
from lorakit.data.template import Template
from lorakit.errors import LorakitError

_CALL = {
    "id": "abcdef123",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Oslo"}},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tell the weather of a town.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "The town."}},
                "required": ["city"],
            },
        },
    }
]


def _said(*pairs: str) -> list[dict[str, Any]]:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[p[0]], "content": p[2:]} for p in pairs]


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "single": _said("u What is the capital of France?", "a The capital is Paris."),
    "system": _said("s You are terse and kind.", "u Which river?", "a The river Seine, then."),
    "two turns": _said("u Which river is it?", "a It is the Seine.", "u How long?", "a Very long."),
    "thinking in content": _said(
        "u Which river is it?", "a <think>\nPondering deeply here.\n</think>\n\nIt is the Seine."
    ),
    "thinking in both turns": _said(
        "u Which river is it?",
        "a <think>\nPondering deeply here.\n</think>\n\nIt is the Seine.",
        "u How long is it?",
        "a <think>\nMeasuring maps again.\n</think>\n\nVery long indeed.",
    ),
    "reasoning_content": [
        *_said("u Which river is it?"),
        {
            "role": "assistant",
            "content": "It is the Seine.",
            "reasoning_content": "Pondering deeply here.",
        },
    ],
    "tool call and result": [
        *_said("u How is the weather in Oslo?"),
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {
            "role": "tool",
            "name": "get_weather",
            "tool_call_id": "abcdef123",
            "content": '{"degrees": "twentyone"}',
        },
        *_said("a It is warm there."),
    ],
    "empty answer": _said("u Say nothing at all.", "a "),
    "assistant first": _said(
        "a Welcome to the desk.", "u Which river is it?", "a It is the Seine."
    ),
}


class RefusedError(Exception):
    """The template raises an error."""


class Oracle:
    """What transformers alone writes of one conversation by one template, in one form."""

    def __init__(self, tokenizer: Any, source: str, messages: list[Any], tools: Any) -> None:
        self.tokenizer, self.source, self.tools = tokenizer, source, tools
        self.messages = messages
        forms = list(itertools.product((False, True), (False, True), _NAMES))
        best: tuple[int, list[Any]] | None = None
        for parts, as_text, name in forms:
            formed = [_formed(m, parts, as_text, name) for m in messages]
            try:
                lost = sum(len(_lost(messages, i, *self._both(formed, i))) for i in self.answers)
            except RefusedError as error:
                reason = error
                continue
            if best is None or lost < best[0]:
                best = lost, formed
        if best is None:
            raise reason
        self.formed = best[1]

    @property
    def answers(self) -> list[int]:
        """The answers to something: all assistant messages but a first one."""
        return [i for i, m in enumerate(self.messages) if m["role"] == "assistant" and i]

    def _render(self, messages: list[Any], prompt: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    copy.deepcopy(messages),
                    tools=self.tools,
                    chat_template=self.source,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
            )
        except Exception as error:
            raise RefusedError(f"{type(error).__name__}: {error}") from None

    def _both(self, messages: list[Any], at: int) -> tuple[str, str]:
        return self._render(messages[:at], True), self._render(messages[: at + 1], False)

    def turns(self) -> Iterator[tuple[int, str, str, list[str]]]:
        """For each answer: its index, the prompt, the text with the answer, and what is lost."""
        for at in self.answers:
            prompt, written = self._both(self.formed, at)
            yield at, prompt, written, _lost(self.messages, at, prompt, written)


_NAMES = ("reasoning_content", "reasoning", "thinking")


def _formed(message: Any, parts: bool, as_text: bool, name: str) -> Any:
    formed = copy.deepcopy(message)
    if parts:
        formed["content"] = [{"type": "text", "text": formed["content"]}]
    if "reasoning_content" in formed:
        formed[name] = formed.pop("reasoning_content")
    for call in formed.get("tool_calls", ()) if as_text else ():
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return formed


def _pieces(message: Any) -> list[str]:
    content = message["content"].replace("<think>", "\0").replace("</think>", "\0")
    pieces = [*content.split("\0"), message.get("reasoning_content", "")]
    for call in message.get("tool_calls", ()):
        pieces += [call["function"]["name"], *map(str, call["function"]["arguments"].values())]
    return [p.strip() for p in pieces if p.strip()]


def _optional(message: Any, prompt: str) -> list[str]:
    """Thinking, where the prompt as served has ended its own: training may keep it, or stop."""
    if not prompt.rstrip().endswith("</think>"):
        return []
    return [p for p in _pieces(message) if p not in message["content"].split("</think>")[-1]]


def _lost(messages: list[Any], at: int, prompt: str, written: str) -> list[str]:
    """Pieces of the row that neither the prompt nor the answer holds."""
    lost = [
        piece
        for message in messages[:at]
        if message["role"] not in ("assistant", "tool")
        for piece in _pieces(message)
        if piece not in prompt
    ]
    if any(m["role"] == "tool" for m in messages) and "get_weather" not in prompt:
        lost.append("get_weather")
    lost += [
        "twentyone" for m in messages[:at] if m["role"] == "tool" and "twentyone" not in prompt
    ]
    if any(m.get("tool_calls") for m in messages[:at]) and "get_weather" not in prompt:
        lost.append("get_weather")
    # What comes after the last earlier message is this answer.
    earlier = [p for m in messages[:at] for p in _pieces(m)]
    start = max((written.rfind(p) + len(p) for p in earlier if p in written), default=0)
    if "{'type': 'text'" in prompt:
        lost.append("parts written as Python writes them")
    return lost + [p for p in _pieces(messages[at]) if p not in written[start:]]


def judge(oracle: Oracle, sequences: Any, tokenizer: Any, specials: list[str]) -> list[str]:
    """What is wrong with the sequences, in words; nothing where they are right."""
    found, wrong = [], []
    for sequence in sequences:
        runs = [
            list(g) for _, g in itertools.groupby(range(len(sequence)), sequence.weight.__getitem__)
        ]
        for run in runs:
            if sequence.weight[run[0]]:
                before = tokenizer.decode(sequence.ids[: run[0]])
                found.append((before, tokenizer.decode(sequence.ids[run[0] : run[-1] + 1])))
    for at, prompt, written, _ in oracle.turns():
        matching = [answer for before, answer in found if before == prompt]
        if len(matching) != 1:
            wrong.append(f"message {at + 1}: {len(matching)} answers follow the prompt as served")
            continue
        answer = matching[0]
        end = next((s for s in specials if answer.endswith(s)), None)
        if end is None:
            wrong.append(f"message {at + 1}: no end token after {answer[-20:]!r}")
            continue
        body = answer.removesuffix(end).rstrip()
        optional = _optional(oracle.messages[at], prompt)
        pieces = [p for p in _pieces(oracle.messages[at]) if p not in optional]
        missing = [p for p in pieces if p in written and p not in body]
        said = [p for p in _pieces(oracle.messages[at]) if p in written]
        if missing and not _lost(oracle.messages, at, prompt, written):
            wrong.append(f"message {at + 1}: {missing[0]!r} is not supervised")
        elif body not in written:
            wrong.append(f"message {at + 1}: {body!r} is not what the template writes")
        elif said and not written[written.rindex(body) + len(body) :].strip().startswith(
            (*specials, "")[: len(specials) + 1]
        ):
            wrong.append(f"message {at + 1}: the answer ends early at {body[-20:]!r}")
    if len(found) != len(oracle.answers):
        wrong.append(f"{len(found)} supervised pieces for {len(oracle.answers)} answers")
    return wrong


def tokenizer_for(folder: Path, source: str) -> tuple[Any, list[str]]:
    """The built-in model's tokenizer with the special tokens that the template names."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    named = set(
        re.findall(
            r"<[|｜][^<>|｜\s]{1,40}[|｜]>|<\|[a-z_]+>|<[a-z_]+\|>|</?s>|\[/?INST\]|\[e~\[|\]~b\]",
            source,
        )
    )
    # Tags between the messages of a plain conversation are the turns' own tokens.
    for form in (False, True):
        said = _said("u MARK", "a MARK", "u MARK", "a MARK")
        try:
            text = tokenizer.apply_chat_template(
                [_formed(m, form, False, "") for m in said], chat_template=source, tokenize=False
            )
        except Exception:
            continue
        tags = re.findall(r"<[^<>\s]{1,40}>", "".join(text.split("MARK")[1:]))
        named |= {tag for tag in tags if not re.search("think|role|text|start_", tag, re.I)}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(named)})
    specials = {*tokenizer.all_special_tokens, *named}
    specials |= {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    return tokenizer, sorted(specials, key=len, reverse=True)


def run(path: Path, folder: Path, verbose: bool) -> dict[str, tuple[str, str]]:
    """For each conversation what happened without and with `drop`."""
    source = path.read_text(encoding="utf-8")
    tokenizer, specials = tokenizer_for(folder, source)
    template, results = Template("chat", source), {}
    for name, messages in CONVERSATIONS.items():
        tools = TOOLS if name.startswith("tool") else []
        try:
            oracle = Oracle(tokenizer, source, messages, tools or None)
        except RefusedError as error:
            results[name] = ("refused", "refused")
            if verbose:
                print(f"  {name}: the template refuses ({str(error)[:90]})")
            continue
        lost = [piece for _, _, _, pieces in oracle.turns() for piece in pieces]
        optional = [p for at, text, _, _ in oracle.turns() for p in _optional(messages[at], text)]
        example = Example(path.name, messages=tuple(messages), tools=tuple(tools))
        states = []
        for drop in ((), tuple(DROPPABLE)):
            try:
                (encoded,) = encode_examples([example], tokenizer, template, drop=drop)
            except LorakitError as error:
                named = any(piece[:20] in str(error) for piece in lost + optional)
                empty = name == "empty answer" and "is empty" in str(error)
                ok = not drop and (named or empty)
                states.append("stopped" if ok else "WRONG")
                if verbose or not ok:
                    print(f"  {name}: {'' if ok else 'WRONG '}{'(drop) ' * bool(drop)}{error}")
                continue
            if drop and not encoded.sequences:
                states.append("left out")
                continue
            wrong = judge(oracle, encoded.sequences, tokenizer, specials)
            if encoded.answers < len(oracle.answers) and drop:
                # An answer of which nothing is left is not taught.
                wrong = [w for w in wrong if "0 answers follow" not in w and "pieces for" not in w]
            if lost and not drop:
                wrong = [f"{lost[0]!r} is left out in silence"]
            states.append("WRONG" if wrong else "right")
            for sentence in wrong:
                print(f"  {name}: WRONG {'(drop) ' * bool(drop)}{sentence}")
        results[name] = (states[0], states[1])
    return results


def main() -> None:
    """Run all templates, print the table, and end with 1 where one is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="templates whose name holds this")
    parser.add_argument("--verbose", action="store_true", help="say why something is stopped")
    given = parser.parse_args()
    from lorakit.models.default import ensure

    model = Path(ensure())
    counts: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in CONVERSATIONS}
    paths = sorted(p for p in given.folder.rglob("*.jinja*") if given.only in p.name)
    for path in paths:
        print(path.name, flush=True)
        for name, states in run(path, model, given.verbose).items():
            counts[name][states] += 1
    print(f"\n{len(paths)} templates\n")
    print(
        "| conversation | right | stopped, named | refused by the template | wrong | with drop: right | left out | wrong |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, counted in counts.items():

        def total(at: int, state: str, counted: Counter[tuple[str, str]] = counted) -> int:
            return sum(n for states, n in counted.items() if states[at] == state)

        cells = [total(0, s) for s in ("right", "stopped", "refused", "WRONG")]
        cells += [total(1, s) for s in ("right", "left out", "WRONG")]
        print(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    sys.exit(any("WRONG" in states for counted in counts.values() for states in counted))


if __name__ == "__main__":
    main()
