"""A chat template as Ollama has them: Go's text/template over .System and .Messages.

A Jinja template is a program, and Go's templates know neither its filters nor its methods. What can
be carried over is what most templates do: text around the content of each message.

    BOS  [a text where there is no system message]  (open content close)…  the generation prompt

`derive` finds these texts by rendering marked messages, and then holds what it found against the
template on conversations that it did not see. What differs is no Go template of it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Message = dict[str, str]
# Messages and whether the generation prompt follows -> text; None where the template refuses them.
Render = Callable[[Sequence[Message], bool], str | None]
Wrapped = tuple[str, str]


@dataclass(frozen=True)
class GoTemplate:
    """The texts of a template. `go` writes it in Go's syntax, `render` does what that does.

    Attributes:
        bos: text that begins a conversation; left out where the runtime adds the token itself.
        default: what stands after it where there is no system message.
        system: text before and after a system message; None where the template takes none.
        place: 'turn': a system message is a turn of its own. 'first', 'last': it stands within the
            first, or the last, user's message, before its content.
        user, assistant: text before and after a message.
        prompt: the generation prompt.
        again: bos also begins every user's message after the first, as in Llama 2.
    """

    bos: str
    default: str
    system: Wrapped | None
    place: Literal["turn", "first", "last"]
    user: Wrapped
    assistant: Wrapped
    prompt: str
    again: bool = False

    def render(self, messages: Sequence[Message], *, bos: bool = True) -> str:
        """What Ollama makes of a conversation with this template; bos as for `go`."""
        system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
        text = self.bos if bos else ""
        text += "" if system else self.default
        for i, message in enumerate(messages):
            content, role = message["content"], message["role"]
            if role == "user":
                later = (i > 1) if system else (i > 0)
                text += self.bos if self.again and later else ""
                text += self.user[0]
                at = {"first": i == 1, "last": i == len(messages) - 1, "turn": False}[self.place]
                if self.system and system and at:
                    text += self.system[0] + system + self.system[1]
                text += content + self.user[1]
            elif role == "assistant":
                text += self.assistant[0] + content + self.assistant[1]
            elif role == "system" and self.system and self.place == "turn":
                text += self.system[0] + content + self.system[1]
        return text + self.prompt

    def go(self, *, bos: bool) -> str:
        """In Go's syntax.

        Args:
            bos: write the text that begins a conversation. Off where the runtime puts the token
                before every prompt by itself.
        """
        content = "{{ .Content }}"
        at = {"first": "eq $i 1", "last": "eq (len (slice $.Messages $i)) 1", "turn": ""}
        within = own = ""
        if self.system and self.place == "turn":
            own = f"{_text(self.system[0])}{content}{_text(self.system[1])}"
        elif self.system:
            within = (
                f"{{{{ if and $.System ({at[self.place]}) }}}}{_text(self.system[0])}"
                f"{{{{ $.System }}}}{_text(self.system[1])}{{{{ end }}}}"
            )
        later = f"{{{{ if or (gt $i 1) (and (not $.System) (gt $i 0)) }}}}{_text(self.bos)}{{{{ end }}}}"
        return "".join(
            [
                _text(self.bos) if bos else "",
                f"{{{{ if not .System }}}}{_text(self.default)}{{{{ end }}}}"
                if self.default
                else "",
                "{{ range $i, $_ := .Messages }}",
                f'{{{{ if eq .Role "system" }}}}{own}',
                f'{{{{ else if eq .Role "user" }}}}{later if self.again else ""}',
                f"{_text(self.user[0])}{within}{content}{_text(self.user[1])}",
                f'{{{{ else if eq .Role "assistant" }}}}{_text(self.assistant[0])}',
                f"{content}{_text(self.assistant[1])}",
                "{{ end }}{{ end }}",
                _text(self.prompt),
            ]
        )


def printable(character: str) -> bool:
    """Whether Ollama's parser of Modelfiles keeps a character: it drops others without a word."""
    return character in "\n\r\t" or character.isprintable()


def _text(text: str) -> str:
    """A text between Go's actions, with what would end it, or be dropped, written as a string."""
    parts: list[str] = []
    for piece in _pieces(text):
        plain = all(printable(c) for c in piece) and piece not in ("{{", '"""')
        parts.append(piece if plain else f"{{{{ {_quoted(piece)} }}}}")
    if parts and parts[-1].endswith("{"):  # before an action it would begin a third brace
        parts[-1:] = [parts[-1][:-1], '{{ "{" }}']
    return "".join(parts)


def _pieces(text: str) -> list[str]:
    pieces, i = [""], 0
    while i < len(text):
        special = next((s for s in ("{{", '"""') if text.startswith(s, i)), None)
        if special or not printable(text[i]):
            pieces += [special or text[i], ""]
            i += len(special or " ")
        else:
            pieces[-1] += text[i]
            i += 1
    return [piece for piece in pieces if piece]


def _quoted(text: str) -> str:
    """As a string of Go: JSON's, but for characters beyond 16 bits, which Go writes as one."""
    return "".join(
        f"\\U{ord(c):08x}" if ord(c) > 0xFFFF else json.dumps(c)[1:-1] for c in text
    ).join('""')


class NoGoFormError(Exception):
    """A template has no form in Go; the text says what it does that cannot be carried over."""


def derive(render: Render, bos: str = "") -> GoTemplate:
    """The Go template that writes conversations as a Jinja template does.

    Args:
        render: writes messages by that template.
        bos: text of the token that begins a conversation, '' where there is none.

    Raises:
        NoGoFormError: there is none, or it was not found.
    """
    s, u1, a1, u2 = "marksystem", "markfirst", "markanswer", "marksecond"
    user, answer = _user(u1), {"role": "assistant", "content": a1}
    one = _needed(render([user], True), "a question")
    three = _needed(render([user, answer, _user(u2)], True), "a question after an answer")
    head, middle = _split(one, u1)
    again, between, after, _ = _split(three, u1, a1, u2)
    if again != head:
        raise NoGoFormError("it begins a conversation otherwise once there are more messages")
    closed, bare = render([user, answer], False), render([user], False)
    opens, ends_answer = _after_answer(head, after, closed, f"{head}{u1}{between}{a1}")
    before = head.removesuffix(opens)
    ends_question = _after_question(middle, between, bare, f"{head}{u1}")
    starts = bool(bos) and before.startswith(bos)
    repeated = bool(bos) and not before and opens.startswith(bos)
    if repeated:
        opens, before = opens.removeprefix(bos), bos
    lead = bos if starts or repeated else ""
    default = before.removeprefix(lead)
    system: Wrapped | None = None
    place: Literal["turn", "first", "last"] = "turn"
    held = render([{"role": "system", "content": s}, user, answer, _user(u2)], True)
    if held is not None and s in held:
        system, place = _system(held, (s, u1, u2), lead, opens, default)
    found = GoTemplate(
        lead,
        default,
        system,
        place,
        (opens, ends_question),
        (between.removeprefix(ends_question), ends_answer),
        middle.removeprefix(ends_question),
        repeated,
    )
    if trouble := difference(found, render):
        raise NoGoFormError(trouble)
    return found


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _needed(text: str | None, what: str) -> str:
    if text is None:
        raise NoGoFormError(f"it refuses a conversation of {what}")
    return text


def _split(text: str, *marks: str) -> list[str]:
    """The text between marks that each occur once, in this order."""
    parts = []
    for mark in marks:
        if text.count(mark) != 1:
            raise NoGoFormError(
                "it writes a message more than once, in another order, or not at all"
            )
        before, _, text = text.partition(mark)
        parts.append(before)
    return [*parts, text]


def _after_answer(head: str, after: str, closed: str | None, upto: str) -> Wrapped:
    """What opens a user's message, and what ends an answer: `after` is the end and then the opening."""
    if closed is not None and closed.startswith(upto):
        end = closed.removeprefix(upto)
        if after.startswith(end) and head.endswith(after.removeprefix(end)):
            return after.removeprefix(end), end
    size = 0
    while size < min(len(head), len(after)) and head[-size - 1 :] == after[-size - 1 :]:
        size += 1
    return after[len(after) - size :], after[: len(after) - size]


def _after_question(middle: str, between: str, bare: str | None, upto: str) -> str:
    """What ends a user's message: the generation prompt, or what opens an answer, follows it."""
    if bare is not None and bare.startswith(upto):
        end = bare.removeprefix(upto)
        if middle.startswith(end) and between.startswith(end):
            return end
    size = 0
    while size < min(len(middle), len(between)) and middle[size] == between[size]:
        size += 1
    return middle[:size]


def _system(
    text: str, marks: tuple[str, str, str], bos: str, opens: str, default: str
) -> tuple[Wrapped, Literal["turn", "first", "last"]]:
    s, u1, u2 = marks
    if text.index(s) < text.index(u1):
        before, inner, _ = _split(text, s, u1)
        before = before.removeprefix(bos)
        if inner.endswith(opens) and not (opens and before.startswith(opens)):
            return (before, inner[: len(inner) - len(opens)]), "turn"
        if not default and before.startswith(opens):
            return (before.removeprefix(opens), inner), "first"
    elif not default:
        before, inner, _ = _split(text, s, u2)
        at = before.rfind(opens)
        if at >= 0:
            return (before[at + len(opens) :], inner), "last"
    raise NoGoFormError("it puts a system message where Go's form cannot")


_CONTENTS = (
    "What is 2 + 2?",
    "Four.",
    "Und «hier», 好: {{ x }} <b>&amp;</b>\nline\n\n- list",
    "ok",
)


def difference(found: GoTemplate, render: Render) -> str | None:
    """On which conversation the two write different texts; None where they agree on all."""
    for system in (None, "Be brief.", "Two\nlines: {json} é"):
        for questions in (1, 2, 3, 4):
            turns: list[Message] = [{"role": "system", "content": system}] if system else []
            for i in range(questions):
                turns.append(_user(_CONTENTS[i % 4] + str(i)))
                turns.append({"role": "assistant", "content": _CONTENTS[(i + 1) % 4] + str(i)})
            messages = turns[:-1]
            wanted = render(messages, True)
            if wanted is None:
                continue
            if found.render(messages) != wanted:
                kind = "with" if system else "without"
                return (
                    f"a conversation of {questions} question{'s' if questions > 1 else ''} "
                    f"{kind} a system message comes out otherwise"
                )
    return None
