"""A conversation -> its turns: for each answer the prompt as it is served, and what is taught.

What is trained is what will be asked. The prompt of an answer is the template's rendering of the
messages before it, with the generation prompt, as `serve` sends it. The answer is what the template
writes after that for the answer as the last message, up to and with the token that ends it:

    prompt   <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n
    answer   <think>\\n\\n</think>\\n\\nHello!<|im_end|>

Where one text holds several turns exactly so, they are one sequence. Many templates rewrite earlier
turns (they drop the thinking, or end the last answer with another token): there, turns become
sequences of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lorakit.data.chat import (
    CLOSE,
    OPEN,
    ChatFormat,
    TemplateRefusalError,
    format_for,
    refused,
)
from lorakit.data.pieces import (
    first_at,
    last_at,
    last_end,
    longest_end,
    pieces,
    same_end,
    squeezed,
)
from lorakit.data.shapes import Example, Message
from lorakit.data.template import Template, Tokenizer
from lorakit.errors import DataError


@dataclass(frozen=True)
class TextSegment:
    """A segment of a row's text, and whether its tokens are supervised."""

    text: str
    supervised: bool


@dataclass(frozen=True)
class Turn:
    """One answer of a conversation.

    at: index of its message. prompt: the text as it is served. answer: the text after it, with the
    token that ends it if `ended` (else the tokenizer's eos has to follow). taught: the parts
    [start, end) of `answer` that the model generates.
    """

    at: int
    prompt: str
    answer: str
    ended: bool
    taught: tuple[tuple[int, int], ...]

    @property
    def text(self) -> str:
        """Prompt and answer."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class WrittenSequence:
    """A text that teaches some answers. ended: the last of them ends with a special token."""

    segments: tuple[TextSegment, ...]
    ended: bool


class Conversation:
    """The turns of one example, by a chat template."""

    def __init__(
        self,
        example: Example,
        messages: Sequence[Message],
        tokenizer: Tokenizer,
        template: Template,
    ) -> None:
        self.origin, self.messages = example.origin, tuple(messages)
        self.tools = example.tools
        self.format: ChatFormat = format_for(example, tokenizer, template)
        self._written: dict[tuple[int, bool], str] = {}

    def prompt(self, count: int) -> str:
        """The text that is served for the answer to the first `count` messages.

        Raises:
            DataError: the template refuses them.
        """
        try:
            return self._render(count, prompt=True)
        except TemplateRefusalError as error:
            raise refused(self.origin, self.messages[:count], error) from None

    def prompt_segments(self, count: int) -> list[TextSegment]:
        """The same text, cut where training cuts it: around each answer that it holds."""
        text, turns = self.prompt(count), []
        for i, message in enumerate(self.messages[:count]):
            if message["role"] == "assistant":
                try:
                    turns.append(self.turn(i))
                except DataError:
                    continue  # an answer that could not be trained may still be in a prompt
        held = [t for t in turns if text.startswith(t.text)]
        return self._cut(text, held, ())

    def turn(self, at: int) -> Turn:
        """The turn whose answer is message `at`.

        Raises:
            DataError: the template refuses it, or what it writes holds no such answer.
        """
        prompt = self.prompt(at)
        try:
            written = self._render(at + 1, prompt=False)
        except TemplateRefusalError as error:
            raise refused(self.origin, self.messages[: at + 1], error) from None
        start = self._start(prompt, written, at)
        end, ended = self._end(prompt, written, start, at)
        answer = written[start:end]
        taught: tuple[tuple[int, int], ...] = ((0, end - start),)
        if self.format.tagged:
            taught = self._tagged(written, start, end, at)
        if not ended and (ending := self._ending(at)):
            end = len(answer) + len(ending)
            joined = taught[-1][1] == len(answer)
            taught = (
                (*taught[:-1], (taught[-1][0], end)) if joined else (*taught, (len(answer), end))
            )
            answer, ended = answer + ending, True
        return Turn(at, prompt, answer, ended, taught)

    def sequences(self, at: Sequence[int]) -> list[WrittenSequence]:
        """The texts that teach the answers with these indices, as few as hold each of them once.

        Raises:
            DataError: as `turn`.
        """
        turns = [self.turn(i) for i in at]
        others = [t for t in self._untaught(at) if t]
        left, found = list(turns), []
        while left:
            last = left[-1]
            text = last.text
            # An answer without an end token is followed by eos, so it is the last of its sequence.
            inside = [t for t in left if t is last or (t.ended and text.startswith(t.text))]
            held = [t for t in (*turns, *others) if text.startswith(t.text)]
            segments = self._cut(text, held, inside)
            found.append(WrittenSequence(tuple(segments), last.ended))
            left = [t for t in left if t not in inside]
        return found[::-1]

    def _untaught(self, at: Sequence[int]) -> list[Turn | None]:
        """The other answers before the last: a prompt at inference is cut around them too."""
        turns: list[Turn | None] = []
        for i, message in enumerate(self.messages[: max(at, default=0)]):
            if message["role"] == "assistant" and i not in at:
                try:
                    turns.append(self.turn(i))
                except DataError:
                    continue
        return turns

    def _render(self, count: int, *, prompt: bool) -> str:
        key = (count, prompt)
        if key not in self._written:
            self._written[key] = self.format.render(
                self.messages[:count], self.tools, prompt=prompt
            )
        return self._written[key]

    def _start(self, prompt: str, written: str, at: int) -> int:
        """Where in `written` the text begins that follows the prompt."""
        if written.startswith(prompt):
            return len(prompt)
        prompt_atoms, written_atoms = self.format.atoms(prompt), self.format.atoms(written)
        same = 0
        for ours, theirs in zip(prompt_atoms, written_atoms, strict=False):
            if ours != theirs:
                break
            same += 1
        parting = len("".join(prompt_atoms[:same]))
        # The end of the prompt may come again: a template that rewrites earlier messages still
        # writes the answer's header. The longest such piece before the answer is the header.
        # A short answer may stand in an earlier message too, so its last place counts as well.
        said, rest = pieces(self.messages[at]), prompt_atoms[same:]
        places = (first_at(written, parting, said), last_at(written, parting, said))
        headers = [(longest_end(rest, written[parting:place]), place) for place in places]
        header, answer_at = max(headers, key=lambda found: len(found[0]))
        if header.strip():
            return written.rfind(header, parting, answer_at) + len(header)
        lost = squeezed(prompt[parting : self._said(prompt, written, at)])
        if any(squeezed(text) in lost for m in self.messages[:at] for text in pieces(m) if text):
            raise DataError(
                f"{self.origin}: message {at + 1} (assistant) cannot be found in what the chat "
                f"template writes: with the answer it goes on {written[parting : parting + 40]!r} "
                f"where the prompt has {prompt[parting : parting + 40]!r}. Give template a file "
                "whose template writes earlier messages the same with and without the answer"
            )
        return parting

    def _bare(self, prompt: str, at: int) -> str:
        """The prompt without the generation prompt; with it where the template refuses that."""
        try:
            return self._render(at, prompt=False)
        except TemplateRefusalError:
            return prompt

    def _said(self, prompt: str, written: str, at: int) -> int:
        """Where the messages end in the prompt, and the generation prompt begins."""
        bare = self._bare(prompt, at)
        if bare == prompt:  # it is always written, so it ends both texts
            return len(prompt) - same_end(prompt, written)
        return len(bare.rstrip()) if prompt.startswith(bare.rstrip()) else len(prompt)

    def _end(self, prompt: str, written: str, start: int, at: int) -> tuple[int, bool]:
        """Where the answer ends in `written`, and whether a special token ends it there."""
        if self._bare(prompt, at) == prompt:
            # The template writes the generation prompt always, so it stands after the answer too.
            tail = last_end(written, start, pieces(self.messages[at]))
            kept = self._without_header(prompt, written, tail)
            # One special token alone is no header: it ends the answer as it ends a question.
            if written[len(kept) :].strip() not in self.format.specials:
                written = kept
        # What follows the end token (a newline, say) is not generated.
        bare = written.rstrip()
        if len(bare) > start and bare.endswith(self.format.specials):
            return len(bare), True
        return max(start, len(written)), False

    def _without_header(self, prompt: str, written: str, tail: int) -> str:
        ends, rest = self.format.atoms(prompt), self.format.atoms(written[tail:])
        same = same_end(ends, rest)
        if not same:
            return written
        kept = "".join(rest[: len(rest) - same])
        # A user's message may end with the token that ends an answer; it belongs to the answer.
        eos = self.format.eos
        if eos and rest[len(rest) - same] == eos:
            kept += eos
        return written[:tail] + kept

    def _ending(self, at: int) -> str:
        """The end that the template writes only with the next turn, up to its special token."""
        ending = self.format.endings.get(bool(self.messages[at].get("tool_calls")))
        if ending is None or (ending.opens_turn and at + 1 == len(self.messages)):
            return ""
        return ending.text

    def _tagged(self, written: str, start: int, end: int, at: int) -> tuple[tuple[int, int], ...]:
        """The parts of written[start:end] inside {% generation %}, and the end token."""
        marked = self.format.render(self.messages[: at + 1], self.tools, prompt=False, marked=True)
        if marked.replace(OPEN, "").replace(CLOSE, "") != written:
            raise DataError(
                f"{self.origin}: the row holds the characters U+E0F0 or U+E0F1, which lorakit uses "
                "to find the answers in the template's text: take them out of the row"
            )
        before, *parts = marked.split(OPEN)
        position, inside = len(before), []
        for generated, _, after in (part.partition(CLOSE) for part in parts):
            low, high = max(position, start), min(position + len(generated), end)
            if low < high:
                inside.append((low - start, high - start))
            position += len(generated) + len(after)
        if not inside:
            return ((0, end - start),)
        # A header that the template writes before the tag and the prompt does not end with has to
        # be generated too; thinking before the tag is the template's own choice.
        lead = squeezed(written[start : start + inside[0][0]])
        if not any(squeezed(piece) in lead for piece in pieces(self.messages[at])):
            inside[0] = (0, inside[0][1])
        # The tag may close before the end of the turn, which is generated too.
        rest = written[start + inside[-1][1] : end]
        if rest.strip() in self.format.specials:
            inside[-1] = (inside[-1][0], end - start)
        return tuple(inside)

    def _cut(self, text: str, held: Sequence[Turn], taught: Sequence[Turn]) -> list[TextSegment]:
        """The text cut around each of its turns; the end token of an earlier answer is taught."""
        edges, supervised = {0, len(text)}, []
        for turn in held:
            parts = [(len(turn.prompt) + a, len(turn.prompt) + b) for a, b in turn.taught]
            edges.update(edge for part in parts for edge in part)
            edges.update((len(turn.prompt), len(turn.text)))
            if turn in taught:
                supervised += parts
        return [
            TextSegment(text[a:b], any(low <= a and b <= high for low, high in supervised))
            for a, b in pairwise(sorted(edges))
        ]
