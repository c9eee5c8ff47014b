"""How an example is written for the model: by a chat template, as raw text, or as recorded."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import jinja2
import jinja2.meta

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

    def __hash__(self) -> int:
        """What was asked of it is remembered."""

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
    sha256: of the source, '' for raw. options: variables for the template, such as
    ``{"enable_thinking": False}``. tool_source: another template for conversations with tools,
    where the model has one.
    """

    kind: TemplateKind
    source: str | None = None
    system: str | None = None
    sha256: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    tool_source: str | None = None

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
        if self.kind == "raw" and self.options:
            raise ConfigError("template options have no place in template 'raw'")

    def __hash__(self) -> int:
        return hash((self.sha256, self.system, json.dumps(dict(self.options), sort_keys=True)))

    def changed(self, system: str | None, options: Mapping[str, Any]) -> "Template":
        """The same template with another system text and further variables, where given.

        Raises:
            ConfigError: the template reads no such variable, or is raw.
        """
        changed = replace(self, system=system or self.system, options={**self.options, **options})
        return _checked(changed) if options else changed

    def baked(self, *, tools: bool = False) -> str:
        """The Jinja source with options and system text written in, for programs that know neither.

        tools: of the template for conversations with tools.

        Raises:
            ConfigError: the template is raw.
        """
        source = (tools and self.tool_source) or self.source
        if source is None:
            raise ConfigError("template 'raw' has no Jinja source")
        lead = "".join(
            f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"
            for name, value in self.options.items()
        )
        if self.system:
            lead += (
                "{%- set lorakit = namespace(system=false) %}{%- for message in messages %}"
                "{%- if message['role'] in ['system', 'developer'] %}"
                "{%- set lorakit.system = true %}{%- endif %}{%- endfor %}"
                "{%- if not lorakit.system %}{%- set messages = [{'role': 'system', 'content': "
                f"{_literal(self.system)}}}] + messages %}}{{%- endif %}}"
            )
        # A minus sign trims the white space after the lead, which a template may begin with.
        return (
            lead + source if not lead or not source[:1].isspace() else f"{lead}{{{{ '' }}}}{source}"
        )

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


def _literal(value: Any) -> str:
    """A value as Jinja writes it: JSON, but for the names of true, false and none."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


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
        if name not in ("auto", "raw") or spec.system or spec.template_options:
            what = "system" if spec.system else f"template {name!r}"
            what = what if spec.system or name not in ("auto", "raw") else "template_option"
            raise ConfigError(f"{what} cannot be used: rows of text are trained on as they stand")
        return Template("raw")
    if name not in ("auto", "chat", "raw"):
        return chat_template(_read(name), spec.system, spec.template_options)
    source = None if name == "raw" else tokenizer.chat_template or None
    if source is None and (
        name == "chat" or kind == "messages" or spec.system or spec.template_options
    ):
        why = {"chat": "template is 'chat'"}.get(
            name,
            "the rows are conversations"
            if kind == "messages"
            else f"{'system' if spec.system else 'template_option'} is given",
        )
        lack = "template 'raw' has no roles" if name == "raw" else "the model has no chat template"
        raise ConfigError(f"{why}, but {lack}: give template a file that holds one (Jinja)")
    if source is None:
        return Template("raw")
    return chat_template(source, spec.system, spec.template_options)


def template_variables(source: str) -> tuple[str, ...]:
    """The variables that a template reads and that an option may set, in alphabetical order.

    Raises:
        ConfigError: the template is no Jinja.
    """
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"])
    try:
        tree = environment.parse(re.sub(r"\{%(-?\+?)\s*(end)?generation\s*(-?\+?)%\}", "", source))
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"the chat template is broken at its line {error.lineno}: {error.message}"
        ) from None
    given = {*_GIVEN, *environment.globals}
    names = jinja2.meta.find_undeclared_variables(tree) - given
    # What the template itself sets is its own, unless it asks first whether it was given.
    own = set(re.findall(r"\bset\s+(\w+)\s*=", source)) - set(
        re.findall(r"\b(\w+)\s+is\s+(?:not\s+)?defined", source)
    )
    return tuple(sorted(n for n in names - own if not n.endswith("_token")))


# What transformers hands to every template.
_GIVEN = (
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "raise_exception",
    "strftime_now",
)


def _checked(template: Template) -> Template:
    """The template, its options all among the variables that it reads."""
    if template.options:
        assert template.source is not None
        known = template_variables(template.source)
        for name in template.options:
            if name not in known:
                near = did_you_mean(name, known) if known else "it reads none"
                raise ConfigError(
                    f"template_option {name!r} is no variable of the chat template; {near}"
                )
    return template


def chat_template(
    source: str | Mapping[str, str],
    system: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Template:
    """A chat template from its source, or from several by name: "default", and "tool_use" for tools.

    Raises:
        ConfigError: none of several is called "default", or an option is no variable of it.
    """
    tool_source = None
    if isinstance(source, Mapping):
        # transformers too takes "default", and "tool_use" for conversations with tools.
        if "default" not in source:
            raise ConfigError(
                f"the model has several chat templates ({', '.join(sorted(source))}) and none is "
                "called 'default': save the one you want to a file and give template its name"
            )
        tool_source, source = source.get("tool_use"), source["default"]
    return _checked(
        Template("chat", source, system, options=options or {}, tool_source=tool_source)
    )


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
