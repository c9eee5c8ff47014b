"""README.md of an adapter folder: the model card, and how each runtime takes the adapter."""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from lorakit.adapters.vllm_ranks import next_rank
from lorakit.lora.spec import LoraSpec

if TYPE_CHECKING:
    from lorakit.adapters.pairs import Pair


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
    base = base_name or "the base model"
    known = provenance or {}
    front = ["---", "library_name: peft", "pipeline_tag: text-generation", "tags:", "- lora"]
    front += ["- lorakit"]
    if base_name:
        front.insert(1, f"base_model: {_quoted(base_name)}")
    kinds = sorted({path.rsplit(".", 1)[-1] for path in pairs})
    lines = [
        *front,
        "---",
        "",
        f"# LoRA adapter for {base}",
        "",
        f"- base model: {base}",
        f"- rank {_span(p.rank for p in pairs.values())}, "
        f"alpha {_span(p.alpha for p in pairs.values())}, "
        f"scale {spec.variant.scale_formula}",
        f"- {len(pairs)} adapted modules: {', '.join(kinds)}",
        f"- {sum(pair.parameters for pair in pairs.values()):,} trained parameters",
    ]
    lines += _section("Task", _task(known))
    lines += _section("Data", _data(known))
    numbers = _numbers(known.get("metrics"))
    if numbers:
        lines += ["", "## Metrics", "", "| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.6g} |" for name, value in numbers.items()]
    lines += ["", "## Use", *_use(pairs, base_name)]
    lines += ["", "`lorakit.json` says which base, data and configuration it came from."]
    return "\n".join(lines) + "\n"


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


def _use(pairs: "Mapping[str, Pair]", base_name: str | None) -> Iterator[str]:
    """One section a runtime; a limit is said where this very adapter meets it."""
    base = repr(base_name or "BASE")
    yield from (
        "",
        "With lorakit, which checks that the base is the right one:",
        "",
        "```python",
        f"model, tokenizer = lorakit.load_model({base})",
        'lorakit.load_adapter(model, "this/folder")',
        "```",
        "",
        "With peft:",
        "",
        "```python",
        f"model = AutoModelForCausalLM.from_pretrained({base})",
        'model = PeftModel.from_pretrained(model, "this/folder")',
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
    if rank := next_rank(max(pair.rank for pair in pairs.values())):
        yield from (
            "",
            "With vLLM, at one rank and one scale for all modules:",
            "",
            "```",
            "lorakit export this/folder --to vllm --out for-vllm",
            f"vllm serve {base_name or 'BASE'} --enable-lora --max-lora-rank {rank} "
            "--lora-modules name=for-vllm",
            "```",
        )
    yield from (
        "",
        "With llama.cpp, beside the base as a GGUF file:",
        "",
        "```",
        f"lorakit export this/folder --to gguf --model {base_name or 'BASE'} --out adapter.gguf",
        "llama-cli -m base.gguf --lora adapter.gguf",
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
