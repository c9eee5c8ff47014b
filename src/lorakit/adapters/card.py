"""README.md of an adapter folder: the model card, and how each runtime takes the adapter."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from lorakit.adapters.asking import asking_in
from lorakit.adapters.vllm_ranks import next_rank
from lorakit.errors import ConfigError
from lorakit.lora.initialisation import Initialisation
from lorakit.lora.initialisations import initialisation_of
from lorakit.lora.spec import LoraSpec
from lorakit.lora.variant import Capability, Variant
from lorakit.models.default import HUB_ID, NAME

if TYPE_CHECKING:
    from lorakit.adapters.pairs import Pair

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def model_card(
    spec: LoraSpec,
    pairs: "Mapping[str, Pair]",
    base_name: str | None,
    provenance: Mapping[str, Any] | None,
) -> str:
    """The card: base, task, data, what is adapted, numbers where there are some, how to use it.

    Of a run's configuration only what says what was trained is shown, and of paths only the name
    at the end: a card is published, the machine that it came from is not.
    """
    known, base = provenance or {}, _Base(base_name)
    front = ["---", "library_name: peft", "pipeline_tag: text-generation", "tags:", "- lora"]
    front += ["- lorakit"]
    if base_name:
        front.insert(1, f"base_model: {_quoted(base.public)}")
    kinds = sorted({path.rsplit(".", 1)[-1] for path in pairs})
    lines = [
        *front,
        "---",
        "",
        f"# {spec.variant.name} adapter for {_code(base.public) if base_name else 'a base model'}",
        "",
        *([f"- base model: {base.words}"] if base_name else []),
        f"- rank {_span(p.rank for p in pairs.values())}, "
        f"alpha {_span(p.alpha for p in pairs.values())}, "
        f"scale {spec.variant.scale_formula}",
        f"- {len(pairs)} adapted modules: {', '.join(kinds)}",
        *_trained(pairs, known),
    ]
    lines += _section("Task", _task(known))
    lines += _section("Data", _data(known))
    numbers = _numbers(known.get("metrics"))
    if numbers:
        lines += ["", "## Metrics", "", "| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.6g} |" for name, value in numbers.items()]
    lines += ["", "## Use", *_use(pairs, spec.variant, base, known)]
    lines += ["", "`lorakit.json` says which base, data and configuration it came from."]
    return "\n".join(lines) + "\n"


def _trained(pairs: "Mapping[str, Pair]", known: Mapping[str, Any]) -> Iterator[str]:
    """How many parameters were trained, and how they began where that is not at random and zero."""
    held = sum(pair.parameters for pair in pairs.values())
    how, given = _start(known), _mapping(known, "config").get("rank")
    rank = given if isinstance(given, int) else "r"
    if how is not None and how.splits:
        yield (
            f"- {held // how.held:,} trained parameters, begun by {how.name} at rank {rank}, held at "
            f"{how.held} times that beside the untouched base"
        )
    elif how is not None and how.frozen:
        trained = sum(pair.A.numel() for pair in pairs.values())
        yield f"- {trained:,} trained parameters, begun by {how.name}: B stays as it began"
    else:
        began = f", begun by {how.name}" if how is not None and how.fill is not None else ""
        yield f"- {held:,} trained parameters{began}"


def _start(known: Mapping[str, Any]) -> Initialisation | None:
    """How the pairs of a fresh run began; None of a child, whose parent's pairs they were."""
    config = _mapping(known, "config")
    if config.get("from") or known.get("parents"):
        return None
    try:
        return initialisation_of(str(config.get("init", "kaiming")))
    except ConfigError:  # of a later lorakit
        return None


def _section(title: str, lines: Iterator[str]) -> list[str]:
    found = list(lines)
    return ["", f"## {title}", "", *found] if found else []


def _task(known: Mapping[str, Any]) -> Iterator[str]:
    """What it answers, as far as the run's template and columns tell."""
    config, template = _mapping(known, "config"), _mapping(known, "template")
    for key, what in (("prompt", "asked with"), ("completion", "answers with")):
        if config.get(key):
            yield f"- {what}: {_code(config[key])}"
    if template.get("kind"):
        yield f"- template: {template['kind']}"
    if template.get("system"):
        yield f"- system prompt: {_code(template['system'])}"


def _data(known: Mapping[str, Any]) -> Iterator[str]:
    config = _mapping(known, "config")
    for key, what in (("data", "trained on"), ("eval_data", "evaluated on")):
        if names := config.get(key):
            yield f"- {what}: {', '.join(_code(PurePath(str(name)).name) for name in names)}"
    if known.get("data_sha256"):
        yield f"- SHA-256 of the rows: {known['data_sha256']}"


@dataclass(frozen=True)
class _Base:
    """A base model by its recorded name, and how each program is told of it."""

    name: str | None

    @property
    def public(self) -> str:
        """Its id on the hub, or the last part of a folder's name."""
        if self.name == NAME:
            return HUB_ID
        return self.name if self.on_hub and self.name else PurePath(self.name or "").name

    @property
    def on_hub(self) -> bool:
        """Whether the name may be an id of the hub."""
        return self.name == NAME or bool(_HUB_NAME.fullmatch(self.name or ""))

    @property
    def words(self) -> str:
        """As the card says it."""
        if self.name == NAME:
            return (
                f"{_code(HUB_ID)}, which lorakit has as `{NAME}`, out of a 4-bit GGUF file: the hub's "
                "weights are not rounded so, and an answer may differ from lorakit's"
            )
        return _code(self.public)

    @property
    def given(self) -> str:
        """What stands in a command; BASE for a folder, which is another one elsewhere."""
        return self.public if self.on_hub else "BASE"

    @property
    def own(self) -> str:
        """The same for lorakit, which has one model by a name of its own."""
        return NAME if self.name == NAME else self.given


def _use(
    pairs: "Mapping[str, Pair]", variant: Variant, base: _Base, known: Mapping[str, Any]
) -> Iterator[str]:
    """One section a runtime; a limit is said where this very adapter meets it."""
    # What lorakit recorded of the base, it finds again by itself.
    model = "" if asking_in(known).get("model") else f" --model {shlex.quote(base.own)}"
    yield from ("", "Run these lines in the adapter's folder.")
    if not base.on_hub:
        what = f", {_code(base.public)}" if base.public else ""
        yield f"BASE stands for the folder or the hub id of the base model{what}."
    yield from (
        "",
        "With lorakit, which checks that the base is the right one:",
        "",
        "```python",
        "import lorakit",
        "",
        f"model, tokenizer = lorakit.load_model({base.own!r})",
        'lorakit.load_adapter(model, ".")',
        "```",
        "",
        "With peft:",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({base.given!r})",
        'model = PeftModel.from_pretrained(model, ".")',
        "```",
    )
    if dilated := [path for path, pair in pairs.items() if pair.dilated]:
        yield from ("", f"peft computes {', '.join(dilated)} otherwise: it drops the dilation.")
    if convolutions := [path for path, pair in pairs.items() if pair.kind == "conv"]:
        yield from (
            "",
            f"vLLM and llama.cpp adapt no convolutions ({convolutions[0]}): merge it for them "
            "(`lorakit merge`).",
        )
        return
    if not {Capability.VLLM, Capability.LLAMA_CPP} <= variant.capabilities:
        yield from (
            "",
            f"vLLM and llama.cpp load no {variant.name}: merge it for them (`lorakit merge`).",
        )
        return
    if rank := next_rank(max(pair.rank for pair in pairs.values())):
        yield from (
            "",
            "With vLLM, at one rank and one scale for all modules:",
            "",
            "```",
            "lorakit export . --to vllm --out ../for-vllm",
            f"vllm serve {shlex.quote(base.given)} --enable-lora --max-lora-rank {rank} "
            "--lora-modules name=../for-vllm",
            "```",
        )
    yield from (
        "",
        "With llama.cpp, beside the base as a GGUF file:",
        "",
        "```",
        f"lorakit export . --to gguf{model} --out ../adapter.gguf",
        "llama-cli -m base.gguf --lora ../adapter.gguf",
        "```",
    )


def _mapping(known: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = known.get(key)
    return found if isinstance(found, Mapping) else {}


def _code(text: object) -> str:
    """A user's text as one line of code, whatever is in it."""
    line = " ".join(str(text).split())
    fence = "`" * (1 + max((len(run) for run in _runs(line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def _runs(line: str) -> list[str]:
    """The runs of backticks in a line."""
    return [run for run in "".join(c if c == "`" else " " for c in line).split() if run]


def _span(values: Any) -> str:
    found = sorted(set(values))
    return f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"


def _numbers(metrics: Any, prefix: str = "") -> dict[str, float]:
    """The finite numbers of a mapping, nested ones with dotted names."""
    found: dict[str, float] = {}
    if isinstance(metrics, Mapping):
        for key, value in metrics.items():
            if isinstance(value, Mapping):
                found |= _numbers(value, f"{prefix}{key}.")
            elif isinstance(value, int | float) and not isinstance(value, bool):
                found[f"{prefix}{key}"] = value
    return found


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
