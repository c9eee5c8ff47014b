"""An adapter folder -> pairs on a model, every tensor accounted for."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lorakit.adapters.accounting import Tensors, account
from lorakit.adapters.attached import remember_loaded
from lorakit.adapters.beside import values_in
from lorakit.adapters.info import AdapterInfo, describe, pair_paths
from lorakit.adapters.model_paths import for_model
from lorakit.adapters.moments import named_tensors
from lorakit.adapters.names import pair_names
from lorakit.adapters.naming import describe_targets
from lorakit.adapters.packed_base import packing_note
from lorakit.adapters.pairs import AdapterFiles, StoredAdapter, open_adapter
from lorakit.adapters.parameter_names import parameters_of
from lorakit.adapters.peft_config import CONFIG, PeftConfig
from lorakit.adapters.provenance import Identity, base_note, check_base, known_identity
from lorakit.adapters.refusals import merged_by_peft
from lorakit.adapters.saved_tokenizer import tokens_note
from lorakit.errors import AdapterError, ConfigError, TargetError, did_you_mean
from lorakit.kernels.packed.counting import packing_of
from lorakit.lora import LoraSpec, Plan, attach, lora_layers, plan
from lorakit.lora.changing import put
from lorakit.lora.kinds import kind_of
from lorakit.lora.parameters import bare_parameters
from lorakit.lora.spec import ALL_LINEAR
from lorakit.lora.targets import matches, pattern_hits

_log = logging.getLogger("lorakit.adapters")


def load_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    identity: Identity | None = None,
    force: bool = False,
    trainable: bool = False,
) -> AdapterInfo:
    """Attach the adapter in a folder to a model, in place.

    The tensors say which modules are adapted and the configuration has to agree. Everything is
    checked before the model is touched: after an error it is as it was.

    Args:
        model: the base, without pairs.
        folder: in peft's format, written by lorakit or by peft.
        identity: the base's fingerprint, known without being given for a model that
            `load_model` made; with it, an adapter of another base is refused.
        force: skip that comparison.
        trainable: let A and B take gradients, to train on.

    Raises:
        AdapterError: a missing, extra or misshapen tensor, with the nearest names; a foreign,
            truncated, pickled or changed file; a variant that lorakit does not do.
        BaseMismatchError: the base's weights, tokenizer or chat template are others.
        TargetError: the model has pairs already.
    """
    if lora_layers(model):
        raise TargetError("this model has an adapter attached already: detach it first")
    opened = open_adapter(folder)
    known = known_identity(model, identity)
    if not force:
        check_base(opened.folder, opened.record, known)
    made, tensors, notes = _fit(model, opened)
    if note := base_note(opened.config.base_name, opened.record, known):
        notes = (note, *notes)
    if note := packing_note(opened.record, packing_of(model)):
        notes = (note, *notes)
    if note := tokens_note(opened.folder, model):
        notes = (note, *notes)
    for note in notes:
        _log.warning("%s: %s", opened.folder, note)
    _attach(model, made, tensors, trainable)
    ranks = {target.path: target.rank for target in made.targets}
    info = describe(
        opened.folder, opened.config, opened.record, made.spec, ranks, made.trainable, notes
    )
    remember_loaded(model, info)
    return info


def attach_stored(model: nn.Module, adapter: StoredAdapter, *, trainable: bool = False) -> Plan:
    """Attach an adapter that is in memory to a model, in place; checked as `load_adapter` does.

    Which base it belongs to is not compared.

    Raises:
        AdapterError: it does not fit the model.
        TargetError: the model has pairs already.
    """
    if lora_layers(model):
        raise TargetError("this model has an adapter attached already: detach it first")
    made, tensors, _ = _fit(model, adapter.opened)
    _attach(model, made, tensors, trainable)
    return made


def fit_stored(model: nn.Module, adapter: StoredAdapter) -> tuple[Plan, tuple[str, ...]]:
    """What an adapter would adapt in a model, which may be on the meta device; and notes.

    Raises:
        AdapterError: it does not fit the model.
    """
    made, _, notes = _fit(model, adapter.opened)
    return made, notes


def values_of(model: nn.Module, adapter: StoredAdapter, made: Plan) -> list[Tensor]:
    """The values of what a plan changes beside the pairs, by the paths of a model, in the plan's order."""
    opened = for_model(model, adapter.opened)
    paths = [target.path for target in made.targets]
    return values_in(opened.file, opened.tensors, made.whole, paths)[0]


def _fit(model: nn.Module, opened: AdapterFiles) -> tuple[Plan, Tensors, tuple[str, ...]]:
    """The plan of an adapter on a model and its tensors, once both account for each other."""
    opened = for_model(model, opened)
    notes: list[str] = [*opened.notes]
    file = opened.file
    paths = _paths_in(model, opened)
    made = _plan(model, file, opened.config, paths, notes)
    if opened.record is None:
        _refuse_dilated(file, made)
    tensors = account(model, file, made, opened.tensors, notes)
    return made, tensors, tuple(notes)


def _attach(model: nn.Module, made: Plan, tensors: Tensors, trainable: bool) -> None:
    attach(model, made)
    with torch.no_grad():
        for name, tensor in named_tensors(lora_layers(model)).items():
            tensor.copy_(tensors.pairs[name])
            tensor.requires_grad_(trainable)
    put(model, made.whole, tensors.beside, trainable=trainable)


def _paths_in(model: nn.Module, opened: AdapterFiles) -> list[str]:
    """The paths of the model's modules and parameters that the files have pairs for."""
    found = pair_paths(opened.file, opened.tensors, opened.config.spec)
    order = {path: list(module._parameters) for path, module in model.named_modules()}
    config = opened.config
    try:
        parameters = parameters_of(
            *(found, config.target_parameters),
            modules=[stem for stem in found if config.names_module(stem)],
            order=order,
        )
    except AdapterError as error:
        raise AdapterError(f"{opened.file}: {error}") from None
    return [parameters.get(stem, stem) for stem in found]


def _plan(
    model: nn.Module, file: Path, config: PeftConfig, paths: list[str], notes: list[str]
) -> Plan:
    """The plan for exactly these paths, once the configuration agrees with them."""
    modules = dict(model.named_modules())
    bare = bare_parameters(model)
    experts = [path for path in bare if path in paths]
    meant = {p for p in bare if any(matches(end, p) for end in config.target_parameters)}
    if lost := sorted(meant - set(paths)):
        raise AdapterError(
            f"{file} lacks the pair of {lost[0]} ({len(lost)} of the parameters that target_parameters "
            f"of {CONFIG} names have no tensors)"
        )
    paths = [path for path in paths if path not in experts]
    for path in paths:
        if path not in modules:
            raise AdapterError(
                f"{file} has a pair for {path}, and the model has no such module; "
                + did_you_mean(path, (known for known, m in modules.items() if kind_of(m)))
            )
    if config.target_modules != ALL_LINEAR:
        selected = {path for path, m in modules.items() if kind_of(m) and config.selects(path)}
        if config.last_number is None:  # what one way of counting alone names, the tensors tell
            ways = [replace(config, last_number=way) for way in (True, False)]
            selected = {path for path in selected if all(way.selects(path) for way in ways)}
        if lost := sorted(selected - set(paths)):
            names = pair_names(lost[0], kind_of(modules[lost[0]]) or "linear")
            raise AdapterError(
                f"{file} lacks {names[0]} and {names[1]} ({len(lost)} of the modules that {CONFIG} "
                f"names have no tensors); {did_you_mean(lost[0], paths)}"
            )
    for path in paths:
        if not config.selects(path):
            raise AdapterError(
                f"{file} has a pair for {path}, which {CONFIG} does not name: target_modules is "
                f"{config.target_modules!r}"
            )
    try:
        made = plan(model, _spec(config, paths, experts, modules, notes), any_rank=True)
    except (TargetError, ConfigError) as error:
        raise AdapterError(f"{file.parent} does not fit this model: {error}") from error
    if config.ties_pairs and (shared := [t for t in made.targets if t.tied_to]):
        raise AdapterError(
            f"{file}: ensure_weight_tying makes the pair of {shared[0].path} that of "
            f"{', '.join(shared[0].tied_to)} too, which share its weight; lorakit has a pair for each layer. "
            f"{merged_by_peft(file.parent)}"
        )
    wide = [target for target in made.targets if target.rank > target.geometry.largest_rank()]
    if wide:
        notes.append(
            f"rank {wide[0].rank} of {wide[0].path} is above its smaller side "
            f"{wide[0].geometry.largest_rank()} ({len(wide)} such modules): `lorakit adapters shrink` "
            "makes it smaller without a loss"
        )
    return made


def _refuse_dilated(file: Path, made: Plan) -> None:
    """peft (0.21) runs A without the base's dilation: the same tensors mean something else."""
    for target in made.targets:
        if target.geometry.dilated:
            raise AdapterError(
                f"{file}: {target.path} is a convolution with dilation, and peft leaves the "
                "dilation out beside such a base, so that its adapter is not W + s·B·A; lorakit "
                "loads its own adapters on it only"
            )


def _spec(
    config: PeftConfig,
    dense: list[str],
    experts: list[str],
    modules: Mapping[str, nn.Module],
    notes: list[str],
) -> LoraSpec:
    named = describe_targets(dense, modules)
    paths = [*dense, *experts]
    patterns = {
        "rank_pattern": config.spec.rank_pattern,
        "alpha_pattern": config.spec.alpha_pattern,
    }
    for option, pattern_map in patterns.items():
        for key in pattern_map:
            if not pattern_hits(key, paths):
                notes.append(f"{option} {key!r} means none of the adapted modules; it is left out")
    if not isinstance(config.target_modules, str):
        for name in config.target_modules:
            if not any(path == name or path.endswith("." + name) for path in modules):
                notes.append(f"target_modules names {name!r}, which this model does not have")
    named_whole = []
    for name in config.spec.modules_to_save:
        if any(path.endswith(name) for path in modules):
            named_whole.append(name)
        else:
            notes.append(f"modules_to_save names {name!r}, which this model does not have")
    return replace(
        config.spec,
        modules_to_save=tuple(named_whole),
        targets=("re:" + named,) if isinstance(named, str) else named,
        target_parameters=tuple(experts),
        rank_pattern={k: v for k, v in config.spec.rank_pattern.items() if pattern_hits(k, paths)},
        alpha_pattern={
            k: v for k, v in config.spec.alpha_pattern.items() if pattern_hits(k, paths)
        },
    )
