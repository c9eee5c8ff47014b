"""adapter_config.json, the description in peft's format, both ways.

Longer than 300 lines: what is read and what is written of one format stand side by side.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from lorakit.adapters.naming import exactly, is_named
from lorakit.adapters.peft_experts import by_module, by_parameter
from lorakit.adapters.peft_habits import counts_last_number
from lorakit.adapters.refusals import INFORMATIVE, READ, TRAINING, VARIANTS, refusal, way_on
from lorakit.errors import AdapterError, ConfigError
from lorakit.files.pointers import pointer_problem
from lorakit.lora.spec import ALL_LINEAR, LoraSpec
from lorakit.lora.targets import first_hit, pattern_hits
from lorakit.lora.variants import PEFT_VALUES, peft_keys, variant_in
from lorakit.models.default import HUB_ID, NAME

CONFIG = "adapter_config.json"
PEFT_VERSION = "0.21.2"  # the version whose format is written; peft is not needed for it
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class PeftConfig:
    """What lorakit reads of a peft configuration.

    Attributes:
        spec: ranks, alphas, rsLoRA, dropout, start; its targets are `target_modules` where that
            is a plain list, `all-linear` otherwise (then the tensors say which modules).
        target_modules: names, or one regular expression for the whole path.
        exclude: likewise.
        layers: numbers of the blocks it is restricted to, or None.
        layers_pattern: names of the module lists that the numbers count in; () for any.
        base_name, revision: which base model it says it belongs to.
        task_type: peft's name of the task; None for a model that is no language model ...
        auto_mapping: ... and then class and module of that model.
        fan_in_fan_out: the linear layers are GPT-2's, which keep their weight transposed.
        target_parameters: bare parameters with pairs, by the ends of their paths.
        taken: last names of linear layers that peft takes for fused experts, so that they are
            written as bare weights; see `peft_experts`.
        moved: paths that the pairs have in the file, where peft would not find them under their own;
            see `peft_names`.
        in_training: keys that are on and act while peft trains alone; never written again.
        last_number: `layers` counts the last number of a path, as peft did up to 0.19, and not the first;
            None where the file does not say which peft wrote it: both are then taken, and the tensors tell.
    """

    spec: LoraSpec
    target_modules: tuple[str, ...] | str
    exclude: tuple[str, ...] | str = ()
    layers: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    base_name: str | None = None
    revision: str | None = None
    task_type: str | None = None
    auto_mapping: Mapping[str, str] | None = None
    fan_in_fan_out: bool = False
    target_parameters: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    moved: Mapping[str, str] = field(default_factory=dict)
    in_training: tuple[str, ...] = ()
    last_number: bool | None = False

    @property
    def plain(self) -> bool:
        """Whether `target_modules` alone, as a list of names, says which modules are meant."""
        return not isinstance(self.target_modules, str) and not self.exclude and not self.layers

    def names_module(self, path: str) -> bool:
        """Whether target_modules names the module at `path` itself, and not all linear layers."""
        return self.target_modules != ALL_LINEAR and self.selects(path)

    def selects(self, path: str) -> bool:
        """peft's rule (0.21, `check_target_module_exists`) for the module at `path`."""
        if is_named(self.exclude, path) or not is_named(self.target_modules, path):
            return False
        exact = not isinstance(self.target_modules, str) and path in self.target_modules
        if not self.layers or exact:
            return True
        patterns = self.layers_pattern or (r"[^.]*",)
        start = r".*?\." if not self.layers_pattern else r"(?:^|.*?\.)"
        last = start.replace("*?", "*")
        known = {True: (last,), False: (start,), None: (start, last)}[self.last_number]
        return any(self._counts(path, each, patterns) for each in known)

    def _counts(self, path: str, start: str, patterns: tuple[str, ...]) -> bool:
        for pattern in patterns:
            if found := re.match(rf"{start}{pattern}\.(\d+)\.", path):
                return self.layers is not None and int(found[1]) in self.layers
        return False


def read_config(folder: Path) -> PeftConfig:
    """Read and check an adapter's configuration.

    Raises:
        AdapterError: the file is missing or no JSON, a value is of the wrong kind, or it
            describes something that lorakit does not do.
    """
    path = folder / CONFIG
    config, taken = by_module(read_json(path))
    if reason := refusal(config):
        raise AdapterError(f"{path}: {reason}{way_on(folder, config)}")
    try:
        parsed = replace(_parse(config), taken=taken)
        return _with_dropout(parsed, folder) if taken else parsed
    except (ConfigError, TypeError, ValueError, re.error) as error:
        raise AdapterError(f"{path}: {error}") from error


def _with_dropout(config: PeftConfig, folder: Path) -> PeftConfig:
    """With the dropout of lorakit.json, where peft's own key had to be 0."""
    record = folder / "lorakit.json"
    if not record.is_file():
        return config
    recorded = read_json(record).get("spec")
    dropout = recorded.get("dropout") if isinstance(recorded, dict) else None
    if not isinstance(dropout, int | float):
        return config
    return replace(config, spec=replace(config.spec, dropout=float(dropout)))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        AdapterError: the file is missing, no JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if problem := pointer_problem(path):
            raise AdapterError(f"{path} {problem}") from error
        raise AdapterError(f"{path} is broken JSON: {error}") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{path} holds a {type(content).__name__}, not a JSON object")
    return content


def _parse(config: Mapping[str, Any]) -> PeftConfig:
    for key in set(peft_keys()) - PEFT_VALUES.keys():
        _flag(config, key)
    options: Any = dict.fromkeys(variant_in(config).options, True) | beside_options(config)
    options |= {field: _ids(config, key) for key, field in PEFT_VALUES.items() if config.get(key)}
    bare = _names(config, "target_parameters")
    if isinstance(bare, str):
        raise ConfigError(f"target_parameters must be a list of names; it is {bare!r}")
    for key in ("r", "lora_alpha", *(() if bare else ("target_modules",))):
        if config.get(key) in (None, [], ""):
            raise ConfigError(f"{key} is missing")
    targets, exclude = _names(config, "target_modules"), _names(config, "exclude_modules")
    layers = config.get("layers_to_transform")
    if isinstance(layers, int):
        layers = [layers]
    pattern = _names(config, "layers_pattern")
    plain = not isinstance(targets, str) and not exclude and not layers
    spec = LoraSpec(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        targets=tuple(targets) if plain else (ALL_LINEAR,),
        target_parameters=bare,
        rank_pattern=dict(config.get("rank_pattern") or {}),
        alpha_pattern={k: float(v) for k, v in (config.get("alpha_pattern") or {}).items()},
        dropout=float(config.get("lora_dropout") or 0.0),
        init="gaussian" if config.get("init_lora_weights") == "gaussian" else "kaiming",
        **options,
    )
    for key in (*spec.rank_pattern, *spec.alpha_pattern):
        pattern_hits(key, [""])  # it has to compile
    return PeftConfig(
        spec,
        targets,
        exclude,
        tuple(int(number) for number in layers) if layers else None,
        (pattern,) if isinstance(pattern, str) else pattern,
        config.get("base_model_name_or_path"),
        config.get("revision"),
        config.get("task_type"),
        config.get("auto_mapping"),
        _flag(config, "fan_in_fan_out"),
        bare,
        in_training=tuple(key for key in TRAINING if config.get(key)),
        last_number=counts_last_number(config.get("peft_version")) if layers else False,
    )


def beside_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `LoraSpec` that say what is trained beside the pairs.

    Raises:
        ConfigError: a value is of the wrong kind.
    """
    whole, rows = _names(config, "modules_to_save"), config.get("trainable_token_indices") or {}
    rows = rows if isinstance(rows, dict) else {"": rows}
    for name, ids in rows.items():
        if not isinstance(ids, list) or not all(type(row) is int and row >= 0 for row in ids):
            raise ConfigError(f"trainable_token_indices must hold token ids; it has {ids!r}")
        if len(set(ids)) < len(ids):
            raise ConfigError(f"trainable_token_indices names a token twice: {ids!r}")
        if name and not isinstance(name, str):
            raise ConfigError(f"trainable_token_indices has {name!r} for the name of an embedding")
    if isinstance(whole, str):
        raise ConfigError(f"modules_to_save must be a list of names; it is {whole!r}")
    return {
        "modules_to_save": whole,
        "token_rows": {name: tuple(ids) for name, ids in rows.items() if ids},
        "bias": config.get("bias") or "none",
        "lora_bias": _flag(config, "lora_bias"),
        "keep_ties": _flag(config, "ensure_weight_tying") if whole else True,
    }


def _names(config: Mapping[str, Any], key: str) -> tuple[str, ...] | str:
    value = config.get(key) or ()
    if isinstance(value, str):
        if value != ALL_LINEAR:
            re.compile(value)
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{key} must be a list of names or a regular expression; it is {value!r}")
    return tuple(value)


def _ids(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = config[key]
    if not isinstance(value, list) or not all(type(i) is int and i >= 0 for i in value):
        raise ConfigError(f"{key} must be a list of token ids; it is {value!r}")
    return tuple(value)


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key) or False
    if not isinstance(value, bool):
        raise ConfigError(f"{key} must be true or false; it is {value!r}")
    return value


def write_config(
    config: PeftConfig,
    *,
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    kinds: Mapping[str, str],
) -> dict[str, Any]:
    """Every key that peft 0.21 writes for a LoRA adapter, with this adapter's values.

    Args:
        config: the numbers and names. Restrictions to layers and exclusions are not written: the
            adapted paths themselves are named instead.
        ranks, alphas: of each adapted module by path.
        kinds: of each adapted module and bare parameter by path.
    """
    spec = config.spec
    bare = [path for path, kind in kinds.items() if kind == "experts"]
    dense = [path for path in ranks if path not in bare]
    named = exactly(dense) if config.exclude or config.layers else config.target_modules
    if not dense:
        named = ()
    rank_pattern = _pattern(spec.rank_pattern, spec.rank, ranks)
    alpha_pattern = _pattern(spec.alpha_pattern, spec.alpha, alphas)
    written: dict[str, Any] = dict.fromkeys((*VARIANTS, *INFORMATIVE, *READ))
    written |= dict.fromkeys(peft_keys(), False)
    written |= {
        "alpha_pattern": {key: _plain(alpha) for key, alpha in alpha_pattern.items()},
        "auto_mapping": config.auto_mapping,
        "base_model_name_or_path": HUB_ID if config.base_name == NAME else config.base_name,
        "bias": spec.bias,
        "ensure_weight_tying": spec.keep_ties and bool(spec.modules_to_save),
        # What peft sets for itself on GPT-2; one flag for all, so not beside other kinds.
        "fan_in_fan_out": set(kinds.values()) & {"conv1d", "linear", "conv"} == {"conv1d"},
        "inference_mode": True,
        "init_lora_weights": "gaussian" if spec.init == "gaussian" else True,
        "loftq_config": {},
        "lora_alpha": _plain(spec.alpha),
        "lora_bias": spec.lora_bias,
        "lora_dropout": spec.dropout,
        "megatron_core": "megatron.core",
        "modules_to_save": list(spec.modules_to_save) or None,
        "peft_type": "LORA",
        "peft_version": PEFT_VERSION,
        "qalora_group_size": 16,
        "r": spec.rank,
        "rank_pattern": rank_pattern,
        # The built-in model's is the hash of a wheel, which peft would ask the hub for.
        "revision": None if config.base_name == NAME else config.revision,
        "target_modules": named if isinstance(named, str) else list(named),
        "target_parameters": list(config.target_parameters) if bare else None,
        "task_type": config.task_type,
        "trainable_token_indices": _token_indices(spec.token_rows),
        "use_qalora": False,
    }
    written |= dict.fromkeys(spec.variant.peft_keys, True)
    written |= {key: list(getattr(spec, field)) or None for key, field in PEFT_VALUES.items()}
    if config.taken:
        written = by_parameter(written, config.taken, dense, ranks, alphas)
    return dict(sorted(written.items()))


def _token_indices(rows: Mapping[str, tuple[int, ...]]) -> Any:
    """As peft has them: a list of the input embedding's rows, a mapping by name, or nothing."""
    if rows.keys() == {""}:
        return list(rows[""])
    return {name: list(ids) for name, ids in rows.items()} or None


def _pattern(
    given: Mapping[str, Number], default: Number, resolved: Mapping[str, Number]
) -> dict[str, Number]:
    """A pattern by which peft finds these values; its keys are sorted in the file.

    Sorting can change which key hits first. Where it does, each module that departs from the
    default gets a key of its own, anchored to its whole path.
    """
    ordered = dict(sorted(given.items()))
    if all(first_hit(ordered, path, default) == value for path, value in resolved.items()):
        return ordered
    exact = {f"^{re.escape(path)}": v for path, v in resolved.items() if v != default}
    return dict(sorted(exact.items()))


def compact(values: Mapping[str, Number]) -> tuple[Number, dict[str, Number]]:
    """The commonest value and a pattern for the modules that depart from it.

    Where all modules of one last name have the same value, the name is the key; else each path is
    a key of its own, anchored and before the names.

    >>> compact({"l.0.q": 8, "l.1.q": 8, "l.0.v": 4, "l.1.v": 4, "l.0.o": 8, "l.1.o": 8})
    (8, {'v': 4})
    """
    counts = Counter(values.values())
    default = max(counts, key=lambda value: (counts[value], value))
    groups: dict[str, dict[str, Number]] = {}
    for path, value in values.items():
        groups.setdefault(path.rsplit(".", 1)[-1], {})[path] = value
    exact: dict[str, Number] = {}
    named: dict[str, Number] = {}
    for name, group in groups.items():
        if len(set(group.values())) == 1:
            if group[next(iter(group))] != default:
                named[re.escape(name)] = group[next(iter(group))]
        else:
            exact |= {f"^{re.escape(p)}": v for p, v in group.items() if v != default}
    pattern = exact | named
    # A name can also be the last name of a path whose value is the default's.
    if all(first_hit(pattern, path, default) == value for path, value in values.items()):
        return default, pattern
    return default, {f"^{re.escape(p)}": v for p, v in values.items() if v != default}


def _plain(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
