"""What an answer has to look like, kept by llguidance: JSON schemas, regular expressions, grammars.

At each step the library says which tokens may come next, by walking the tokens' bytes as a trie
through the parser's state (https://github.com/guidance-ai/llguidance). A grammar is compiled once
for a request; each of its answers goes on from a copy of its own.

Between the parts of JSON there may be one space, or a new line with its indentation: a model that
repeats itself could fill an answer with spaces for as long as it may be.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorakit.errors import ConfigError, InputError
from lorakit.extras import need

WHITESPACE = r"[ ]?|\r?\n[ \t]{0,40}"
"""What may stand between the parts of JSON."""
_TOKENIZERS = 8
"""Forms of the tokenizer that are remembered, one for each set of end tokens."""
KINDS = ("json", "json_object", "regex", "choice", "grammar")
"""Names of vLLM's `structured_outputs` that are understood."""


class GrammarError(InputError):
    """An answer left its grammar, or the library gave it up; it ends that answer alone."""


def serialised(kind: str, value: Any) -> str:
    """A constraint in llguidance's own form; it is not checked yet.

    Args:
        kind: one of `KINDS`.
        value: a schema, true, a regular expression, texts, a grammar in Lark's or GBNF's syntax.

    Raises:
        ConfigError: it is not of that kind.
    """
    need("serve", "a schema or grammar for answers", "llguidance")
    import llguidance

    matcher = llguidance.LLMatcher
    try:
        if kind == "regex":
            return str(matcher.grammar_from_regex(str(value)))
        if kind == "grammar":
            return str(llguidance.grammar_from("grammar", str(value)))
        if kind == "choice":
            texts = " | ".join(json.dumps(str(text)) for text in value)
            return str(matcher.grammar_from_lark(f"start: {texts}"))
        schema = {"type": "object"} if kind == "json_object" else value
        if isinstance(schema, str):
            schema = json.loads(schema)
        return str(
            matcher.grammar_from_json_schema(
                json.dumps(schema), overrides={"whitespace_pattern": WHITESPACE}
            )
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{kind} cannot be read: {error}") from None


class Grammars:
    """Compiles grammars for one tokenizer. Not for several threads at once.

    Args:
        tokenizer: a fast one.
        size: rows of the model's logits.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self._tokenizer, self._size = tokenizer, max(size, len(tokenizer))
        self._known: OrderedDict[frozenset[int], Any] = OrderedDict()

    def compile(self, kind: str, value: Any, ends: frozenset[int]) -> "CompiledGrammar":
        """A grammar for one request.

        Args:
            kind: one of `KINDS`.
            value: see `serialised`.
            ends: token ids that may come once the grammar is satisfied.

        Raises:
            ConfigError: it is broken, or asks for what the library does not do; the text says what.
        """
        text = serialised(kind, value)
        from llguidance import LLMatcher

        problem = LLMatcher.validate_grammar(text)
        if not problem:
            matcher = LLMatcher(self._for(ends), text, log_level=0)
            problem = matcher.get_error() if matcher.is_error() else ""
        if problem:
            raise ConfigError(f"{kind} cannot be followed: {problem.strip()}")
        return CompiledGrammar(matcher, _for_vllm(kind, value), text)

    def _for(self, ends: frozenset[int]) -> Any:
        """The library's form of the tokenizer, made once for each set of end tokens."""
        from llguidance import LLTokenizer

        known = self._known.get(ends)
        if known is None:
            core = json.loads(self._tokenizer.backend_tokenizer.to_str())
            # Settings of whoever used the tokenizer last; they are not part of its vocabulary.
            core["padding"] = core["truncation"] = None
            known = LLTokenizer(json.dumps(core), n_vocab=self._size, eos_token=sorted(ends))
            self._known[ends] = known
            while len(self._known) > _TOKENIZERS:
                self._known.popitem(last=False)
        self._known.move_to_end(ends)
        return known


def _for_vllm(kind: str, value: Any) -> dict[str, Any]:
    """The same constraint in vLLM's `structured_outputs`, the white space between parts included."""
    if kind in ("json", "json_object"):
        schema = {"type": "object"} if kind == "json_object" else value
        schema = json.loads(schema) if isinstance(schema, str) else schema
        if isinstance(schema, dict):
            options = {"whitespace_pattern": WHITESPACE}
            return {"json": {**schema, "x-guidance": options}}
    return {kind: value}


class CompiledGrammar:
    """A grammar that answers can be held to.

    Attributes:
        spec: as vLLM takes it in `structured_outputs`.
        text: as llguidance takes it.
    """

    def __init__(self, matcher: Any, spec: Mapping[str, Any], text: str) -> None:
        self._matcher, self.spec, self.text = matcher, spec, text

    def start(self) -> "TokenMatcher":
        """A matcher for one answer."""
        return TokenMatcher(self._matcher.deep_copy())


class TokenMatcher:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self, size: int) -> Tensor:
        """Which of `size` tokens may come next, (size,) of bool.

        Raises:
            GrammarError: the library gave the grammar up.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        mask = np.unpackbits(bits, bitorder="little")[:size]
        allowed = torch.zeros(size, dtype=torch.bool)
        allowed[: len(mask)] = torch.from_numpy(mask.astype(bool))
        return allowed

    def take(self, id: int) -> None:
        """Go on by a token.

        Raises:
            GrammarError: the grammar does not allow it.
        """
        self._matcher.consume_token(id)
        self._check()

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    def _check(self) -> None:
        if self._matcher.is_error():
            why = str(self._matcher.get_error()).strip().partition("\n")[0]
            raise GrammarError(f"the answer cannot be held to its schema or grammar: {why}")
