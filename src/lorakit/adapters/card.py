"""README.md of an adapter folder: the model card."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorakit.lora.spec import LoraSpec

if TYPE_CHECKING:
    from lorakit.adapters.pairs import Pair


def model_card(
    spec: LoraSpec,
    pairs: "Mapping[str, Pair]",
    base_name: str | None,
    provenance: Mapping[str, Any] | None,
) -> str:
    """A short card: base, what is adapted, numbers where there are some, how to load it."""
    base = base_name or "the base model"
    scale = "alpha / sqrt(rank)" if spec.rslora else "alpha / rank"
    kinds = sorted({path.rsplit(".", 1)[-1] for path in pairs})
    front = ["---", "library_name: peft", "tags:", "- lora", "- lorakit"]
    if base_name:
        front.insert(1, f"base_model: {_quoted(base_name)}")
    lines = [
        *front,
        "---",
        "",
        f"# LoRA adapter for {base}",
        "",
        f"- base model: {base}",
        f"- rank {_span(p.rank for p in pairs.values())}, "
        f"alpha {_span(p.alpha for p in pairs.values())}, "
        f"scale {scale}",
        f"- {len(pairs)} adapted modules: {', '.join(kinds)}",
        f"- {sum(pair.parameters for pair in pairs.values()):,} trained parameters",
    ]
    data = (provenance or {}).get("data_sha256")
    if data:
        lines.append(f"- data: SHA-256 {data}")
    numbers = _numbers((provenance or {}).get("metrics"))
    if numbers:
        lines += ["", "| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.6g} |" for name, value in numbers.items()]
    dilated = [path for path, pair in pairs.items() if pair.dilated]
    if dilated:
        lines += ["", f"peft computes {', '.join(dilated)} otherwise: it drops the dilation."]
    lines += [
        "",
        "With lorakit, which checks that the base is the right one:",
        "",
        "```python",
        f"model, tokenizer = lorakit.load_model({base_name or 'BASE'!r})",
        'lorakit.load_adapter(model, "this/folder")',
        "```",
        "",
        "With peft:",
        "",
        "```python",
        f"model = AutoModelForCausalLM.from_pretrained({base_name or 'BASE'!r})",
        'model = PeftModel.from_pretrained(model, "this/folder")',
        "```",
        "",
        "`lorakit.json` says which base, data and configuration it came from.",
    ]
    return "\n".join(lines) + "\n"


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
