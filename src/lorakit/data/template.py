"""How an example is written for the model: by a chat template, as raw text, or as recorded."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

from lorakit.data.files import nearest_file
from lorakit.data.shapes import Message, Shape
from lorakit.data.spec import DataSpec
from lorakit.errors import ConfigError, did_you_mean

TemplateKind = Literal["chat", "raw"]


class Tokenizer(Protocol):
    """What this room needs of a tokenizer: a fast one of transformers has it all."""

    @property
    def chat_template(self) -> Any:
        """Jinja source, or {name: source}, or None."""

    @property
    def eos_token_id(self) -> Any:
        """The id that ends a text, or None."""

    @property
    def bos_token_id(self) -> Any:
        """The id that begins a text, or None."""

    @property
    def all_special_tokens(self) -> Any:
        """The named special tokens, as strings."""

    @property
    def added_tokens_decoder(self) -> Any:
        """{id: token}, each token with .special; their str() is the text."""

    def __call__(self, text: Any, /, **kwargs: Any) -> Any:
        """A list of texts -> {"input_ids": …}."""

    @property
    def decode(self) -> Callable[..., Any]:
        """Ids -> text."""

    @property
    def apply_chat_template(self) -> Callable[..., Any]:
        """Messages -> text or ids."""


@dataclass(frozen=True)
class Template:
    """How prompts are written for the model. It is recorded with an adapter and used at inference.

    kind: 'chat' (by `source`, a Jinja chat template) or 'raw' (the prompt as it stands).
    system: the message put before conversations that have none of their own.
    sha256: of the source, '' for raw.
    """

    kind: TemplateKind
    source: str | None = None
    system: str | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("chat", "raw"):
            raise ConfigError(f"a template is of the kind 'chat' or 'raw'; this is {self.kind!r}")
        if (self.kind == "chat") != (self.source is not None):
            raise ConfigError("a chat template needs its source, and a raw one has none")
        if self.kind == "raw" and self.system:
            raise ConfigError("system has no place in template 'raw': write it into the prompt")
        sha256 = hashlib.sha256(self.source.encode()).hexdigest() if self.source is not None else ""
        if self.sha256 not in ("", sha256):
            raise ConfigError(
                f"the chat template was changed: its SHA-256 is {sha256[:12]}…, recorded is "
                f"{self.sha256[:12]}…"
            )
        object.__setattr__(self, "sha256", sha256)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, to be recorded with an adapter."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Template":
        """What `to_dict` wrote.

        Raises:
            ConfigError: an unknown key, or a source that does not fit its hash.
        """
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"template: unknown key {key!r}; {did_you_mean(key, known)}")
        if "kind" not in values:
            raise ConfigError("template: the key 'kind' is missing")
        return cls(**values)

    def with_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The messages, led by the system message where they have none of their own."""
        if not self.system or any(m["role"] in ("system", "developer") for m in messages):
            return messages
        return ({"role": "system", "content": self.system}, *messages)


def resolve_template(
    spec: DataSpec, tokenizer: Tokenizer, *, shape: Shape | None = None
) -> Template:
    """Which template `spec.template` means for this tokenizer and rows of this shape.

    shape: of the rows; plain text takes no template, and conversations cannot do without one.

    Raises:
        ConfigError: there is no such file, or no chat template where one is needed.
    """
    name, kind = spec.template, shape.kind if shape else None
    if kind == "text":
        if name not in ("auto", "raw") or spec.system:
            what = "system" if spec.system else f"template {name!r}"
            raise ConfigError(f"{what} cannot be used: rows of text are trained on as they stand")
        return Template("raw")
    if name not in ("auto", "chat", "raw"):
        return Template("chat", _read(name), spec.system)
    source = None if name == "raw" else _own(tokenizer)
    if source is None and (name == "chat" or kind == "messages" or spec.system):
        why = {"chat": "template is 'chat'"}.get(
            name, "the rows are conversations" if kind == "messages" else "system is given"
        )
        lack = "template 'raw' has no roles" if name == "raw" else "the model has no chat template"
        raise ConfigError(f"{why}, but {lack}: give template a file that holds one (Jinja)")
    if source is None:
        return Template("raw")
    return Template("chat", source, spec.system)


def _own(tokenizer: Tokenizer) -> str | None:
    source = tokenizer.chat_template
    if isinstance(source, Mapping):
        # A few models carry several; transformers too takes "default" by default.
        if "default" not in source:
            raise ConfigError(
                f"the model has several chat templates ({', '.join(sorted(source))}) and none is "
                "called 'default': save the one you want to a file and give template its name"
            )
        source = source["default"]
    return source or None


def _read(name: str) -> str:
    path = Path(name).expanduser()
    if not path.is_file():
        near = did_you_mean(name, ("auto", "chat", "raw"))
        hint = near if near.startswith("did") else nearest_file(path)
        raise ConfigError(
            f"template {name!r} is neither auto, chat, raw nor a file that is there; {hint}"
        )
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"template {name}: cannot be read ({error})") from None
    if not source.strip():
        raise ConfigError(f"template {name}: the file is empty")
    return source
