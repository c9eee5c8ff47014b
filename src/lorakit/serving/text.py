"""Tokens -> text as soon as it is certain: whole characters that cannot be part of a stop string."""

from collections.abc import Collection, Sequence
from typing import Any


class TextStream:
    """The text of one answer, piece by piece.

    Only the last few tokens are decoded again for each new one. A piece of text is held back while
    its last character is unfinished, or while it could be the beginning of a stop string.

    Args:
        tokenizer: the base's.
        stop: an answer ends before the first of these strings.
        stop_shown: it ends after it instead.
        specials: ids of special tokens whose text is shown; None for all of them.
        least: a stop string counts where it ends after the text of so many tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str] = (),
        *,
        stop_shown: bool = False,
        specials: Collection[int] | None = frozenset(),
        least: int = 0,
    ) -> None:
        # The tokenizer's own core: the method around it does more for every token than is needed.
        self._decoder, self._stop = tokenizer.backend_tokenizer, tuple(s for s in stop if s)
        self._shown, self._least = stop_shown, least
        # With some specials shown and others not, those that are not are left out here.
        self._skip = specials is not None and not specials
        self._left_out: frozenset[int] = frozenset()
        if specials:
            # Those that the tokenizer has by name are not all: Llama 3's are on this list alone.
            known = tokenizer.added_tokens_decoder.items()
            special = frozenset(int(id) for id, token in known if token.special)
            self._left_out = special - frozenset(specials)
        self._ids: list[int] = []
        # Tokens before `_begin` are text already; those up to `_read` give the same text again.
        self._begin = self._read = self._fed = 0
        self._held = ""
        # Characters at the beginning of what is held that came too early to end an answer.
        self._early = 0
        self.stopped: str | None = None

    def feed(self, id: int) -> str:
        """What a token adds to the certain text, often nothing; `stopped` says if it ended it."""
        self._fed += 1
        if id in self._left_out:
            return ""
        self._ids.append(id)
        before = self._decode(self._ids[self._begin : self._read])
        now = self._decode(self._ids[self._begin :])
        if now.endswith("\ufffd"):
            return ""
        self._begin, self._read = self._read, len(self._ids)
        return self._certain(now[len(before) :])

    def finish(self) -> str:
        """What was held back, at the end of an answer that no stop string ended."""
        before = self._decode(self._ids[self._begin : self._read])
        rest = self._certain(self._decode(self._ids[self._begin :])[len(before) :])
        held, self._held = self._held, ""
        return rest + held

    def _certain(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        text = self._held + text
        self._held = ""
        if self._fed <= self._least:
            self._early = len(text)
        cuts = [(at, s) for s in self._stop if (at := self._find(text, s)) >= 0]
        if cuts:
            at, self.stopped = min(cuts)
            return text[: at + len(self.stopped)] if self._shown else text[:at]
        keep = max(
            (
                n
                for s in self._stop
                for n in range(1, min(len(s), len(text) + 1))
                if text.endswith(s[:n])
            ),
            default=0,
        )
        self._early = max(0, self._early - len(text) + keep)
        if keep:
            self._held = text[-keep:]
            return text[:-keep]
        return text

    def _find(self, text: str, stop: str) -> int:
        """Where a stop string is that ends after what came too early; -1 for nowhere."""
        return text.find(stop, max(0, self._early - len(stop) + 1) if self._early else 0)

    def _decode(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        return str(self._decoder.decode(ids, skip_special_tokens=self._skip))
