"""What each runtime would refuse or mis-scale of an adapter folder as it lies there, and why.

Nothing is computed and nothing written: adapter_config.json and the names and shapes of the
tensors are enough. Folders that lorakit itself refuses can be asked about too.

The rules are vLLM's (vllm/lora/peft_helper.py and utils.py; 0.32 heeds rank_pattern and
alpha_pattern, earlier versions pass over them) and those of llama.cpp's convert_lora_to_gguf.py,
which reads peft's folder.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorakit.adapters.export.families import KNOWN, GgufBase
from lorakit.adapters.folder import TENSORS, adapter_folder
from lorakit.adapters.names import foreign, pair_of, whole_weight_of
from lorakit.adapters.peft_config import CONFIG, read_json
from lorakit.adapters.refusals import VARIANTS, refusal
from lorakit.adapters.vllm_ranks import DEFAULT, RANKS, next_rank
from lorakit.errors import ConfigError
from lorakit.files.tensors import read_shapes
from lorakit.lora.variant import Capability, cannot
from lorakit.lora.variants import peft_keys, variant_in

Runtime = Literal["lorakit", "vllm", "llama.cpp"]
RUNTIMES: tuple[Runtime, ...] = ("lorakit", "vllm", "llama.cpp")
_FOLD = {
    "vllm": "lorakit export ADAPTER --to vllm folds it",
    "llama.cpp": "lorakit export ADAPTER --to gguf folds it",
}
_CONVERT = "save it from peft with path_initial_model_for_weight_conversion"
_NOT_IN_VLLM = (
    *("use_dora", "lora_bias", "modules_to_save", "alora_invocation_tokens"),
    *("layer_replication", "use_bdlora", "use_qalora"),
)
# Starts that leave the base alone once the adapter is saved; vLLM 0.32 refuses every other text.
_STARTS_IN_VLLM = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_MERGE = "lorakit merge makes a model of it"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Finding:
    """One thing about a folder that one runtime does not take as it was meant.

    Attributes:
        runtime: which one.
        verdict: 'refuses': it stops with an error, in some versions at least. 'mis-scales': it
            loads and answers otherwise than trained. 'needs': it takes it with a setting.
        what: the key or tensor.
        why: and what to do.
    """

    runtime: Runtime
    verdict: Literal["refuses", "mis-scales", "needs"]
    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.runtime} {self.verdict} {self.what}: {self.why}"


def lint(folder: str | Path, base: GgufBase | None = None) -> tuple[Finding, ...]:
    """Every finding, in the order of `RUNTIMES`; a runtime without one takes the folder as it is.

    peft is not among the runtimes, because the folder is in its own format.

    Args:
        folder: an adapter in peft's format, of any variant of LoRA.
        base: its base model; without it llama.cpp's names are not looked up.

    Raises:
        AdapterError: the folder is no adapter, or a file of it is broken.
    """
    folder = adapter_folder(folder)
    config, shapes = read_json(folder / CONFIG), read_shapes(folder / TENSORS)
    found = list(_lorakit(config, shapes))
    found += _vllm(config, shapes)
    return (*found, *_llama_cpp(config, shapes, base))


def _lorakit(config: Mapping[str, Any], shapes: Shapes) -> Iterator[Finding]:
    if reason := refusal(config):
        yield Finding("lorakit", "refuses", CONFIG, reason)
    for name, reason in _foreign(shapes).items():
        yield Finding("lorakit", "refuses", name, reason)


def _vllm(config: Mapping[str, Any], shapes: Shapes) -> Iterator[Finding]:
    yield from _variant("vllm", config, Capability.VLLM)
    for key in _NOT_IN_VLLM:
        if config.get(key) and key not in peft_keys():
            why = f"{VARIANTS[key]}; it has none of that"
            yield Finding("vllm", "refuses", key, why)
    if (bias := config.get("bias") or "none") != "none":
        yield Finding("vllm", "refuses", "bias", f"it is {bias!r}, and vLLM takes no trained bias")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in _STARTS_IN_VLLM:
        why = f"{init!r} changes the base, which it does not do; {_CONVERT}"
        yield Finding("vllm", "refuses", "init_lora_weights", why)
    yield from _conv("vllm", shapes)
    yield from _extra("vllm", shapes)
    if isinstance(config.get("target_modules"), str):
        why = f"a regular expression, which some versions read otherwise; {_FOLD['vllm']}"
        yield Finding("vllm", "refuses", "target_modules", why)

    ranks = _ranks(shapes)
    if len(set(ranks.values())) > 1:
        why = f"some versions scale every pair by the one 'r' of {CONFIG}; {_FOLD['vllm']}"
        yield Finding("vllm", "mis-scales", "rank_pattern", why)
    if config.get("alpha_pattern"):
        why = f"some versions scale every pair by the one 'lora_alpha'; {_FOLD['vllm']}"
        yield Finding("vllm", "mis-scales", "alpha_pattern", why)
    highest = max(ranks.values(), default=1)
    taken = next_rank(highest)
    if taken is None:
        why = f"{highest}, and the highest it takes is {RANKS[-1]}; {_MERGE}"
        yield Finding("vllm", "refuses", "rank", why)
    elif taken > DEFAULT:
        why = f"it is {highest}, above vLLM's default: start it with --max-lora-rank {taken}"
        yield Finding("vllm", "needs", "rank", why)
    for name in shapes:
        if name.endswith(".lora_embedding_A"):
            why = "a pair on an embedding, which only some model classes of vLLM take; else merge"
            yield Finding("vllm", "needs", name, why)


def _llama_cpp(
    config: Mapping[str, Any], shapes: Shapes, base: GgufBase | None
) -> Iterator[Finding]:
    yield from _variant("llama.cpp", config, Capability.LLAMA_CPP)
    if config.get("use_dora") and "use_dora" not in peft_keys():
        yield Finding("llama.cpp", "refuses", "use_dora", f"it has no DoRA; {_MERGE}")
    yield from _conv("llama.cpp", shapes)
    yield from _extra("llama.cpp", shapes)
    for key in ("use_rslora", "alpha_pattern"):
        if config.get(key):
            why = f"its converter reads 'lora_alpha' alone; {_FOLD['llama.cpp']}"
            yield Finding("llama.cpp", "mis-scales", key, why)
    if base is not None and base.family not in KNOWN:
        why = f"lorakit writes no GGUF adapter for {base.family!r}; {_MERGE}"
        yield Finding("llama.cpp", "refuses", "the base", why)
    elif base is not None:
        for path in _ranks(shapes):
            if reason := base.refusal(path):
                yield Finding("llama.cpp", "refuses", path, reason)


def _variant(
    runtime: Runtime, config: Mapping[str, Any], capability: Capability
) -> Iterator[Finding]:
    """Where the configuration means a variant of ours that the runtime does not take."""
    try:
        variant = variant_in(config)
    except ConfigError as error:
        yield Finding(runtime, "refuses", CONFIG, str(error))
        return
    if capability not in variant.capabilities:
        why = f"{cannot(variant, capability)}; {_MERGE}"
        yield Finding(runtime, "refuses", ", ".join(sorted(variant.peft_keys)), why)


def _conv(runtime: Runtime, shapes: Shapes) -> Iterator[Finding]:
    for name, shape in shapes.items():
        if len(shape) > 2 and name.endswith(".lora_A.weight"):
            yield Finding(runtime, "refuses", name, f"a convolution's; {_MERGE}")


def _extra(runtime: Runtime, shapes: Shapes) -> Iterator[Finding]:
    """Tensors that are no part of a pair. Copies of the base's own are skipped by all."""
    for name, reason in _foreign(shapes).items():
        yield Finding(runtime, "refuses", name, reason)
    for name in shapes:
        if whole_weight_of(name) is not None and not name.endswith(".base_layer.weight"):
            yield Finding(runtime, "refuses", name, f"a module saved whole; {_MERGE}")


def _foreign(shapes: Shapes) -> dict[str, str]:
    """Tensors that are neither of a pair nor a whole weight, each with what it is."""
    return {
        name: foreign(name)
        for name in shapes
        if pair_of(name) is None and whole_weight_of(name) is None
    }


def _ranks(shapes: Shapes) -> dict[str, int]:
    """The rank of each adapted module by path."""
    found = ((pair_of(name), shape) for name, shape in shapes.items())
    return {pair[0]: shape[0] for pair, shape in found if pair and pair[1] == "A"}
