"""What an adapter folder says of itself, read without a model."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit.adapters.beside import belongs, without_training
from lorakit.adapters.folder import TENSORS, adapter_folder
from lorakit.adapters.foreign_names import own_names
from lorakit.adapters.names import foreign, pair_names, pair_of, tensor_names, whole_weight_of
from lorakit.adapters.parameter_names import parameters_of
from lorakit.adapters.peft_config import CONFIG, PeftConfig, read_config
from lorakit.adapters.provenance import Record, read_record
from lorakit.errors import AdapterError, did_you_mean
from lorakit.files.tensors import read_shapes
from lorakit.lora.spec import LoraSpec
from lorakit.lora.targets import first_hit


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter, without its numbers.

    Attributes:
        folder: where it is.
        spec: ranks, alphas, targets; enough to plan the same adapter on a model.
        ranks: rank of each adapted module by path, sorted by path or in the order of the model.
        trainable_parameters: numbers in all A and B.
        base_name: the base it says it belongs to.
        base: fingerprint of that base, as recorded; None in folders that lorakit did not write.
        provenance: what was recorded of template, data, configuration and metrics, or None.
        tensors_sha256: recorded hash of the tensors' file, or None.
        notes: what was set aside while reading, one sentence each.
    """

    folder: Path
    spec: LoraSpec
    ranks: Mapping[str, int]
    trainable_parameters: int
    base_name: str | None
    base: Mapping[str, Any] | None
    provenance: Mapping[str, Any] | None
    tensors_sha256: str | None
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the adapted modules."""
        return tuple(self.ranks)


def read_adapter(folder: str | Path) -> AdapterInfo:
    """Read what an adapter folder says of itself: headers and JSON alone, no model.

    Raises:
        AdapterError: the folder is no adapter, a file is broken, a tensor is missing, or the
            configuration and the tensors disagree.
    """
    folder = adapter_folder(folder)
    config, record = read_config(folder), read_record(folder)
    in_file = read_shapes(folder / TENSORS)
    own, notes = own_names(folder / TENSORS, in_file, record.moved if record else {})
    shapes = {own[name]: shape for name, shape in in_file.items()}
    lasting, more = without_training(shapes, config.in_training)
    shapes, notes = {name: shapes[name] for name in lasting}, (*notes, *more)
    ranks: dict[str, int] = {}
    count = 0
    kinds = pair_kinds(folder / TENSORS, shapes, config)
    for path, names in tensor_names(kinds, config.spec.variant).items():
        rank = first_hit(config.spec.rank_pattern, path, config.spec.rank)
        ranks[path] = rank if kinds[path] == "experts" else shapes[names["A"]][0]
        count += sum(math.prod(shapes[name]) for name in names.values())
    count += sum(math.prod(s) for name, s in shapes.items() if belongs(name, config.spec))
    dense = tuple(path for path in ranks if kinds[path] != "experts")
    spec = config.spec if config.plain else replace(config.spec, targets=dense)
    return describe(folder, config, record, spec, ranks, count, notes)


def pair_kinds(
    file: Path, shapes: Mapping[str, tuple[int, ...]], config: PeftConfig
) -> dict[str, str]:
    """Paths of the modules that a file has pairs for, each with its kind, as names and shapes tell.

    The kind is embedding, conv or linear; GPT-2's transposed linear looks like any other.

    Raises:
        AdapterError: a tensor of a module is missing, or one is there that its variant does not
            keep; or the configuration names another rank or does not name the module.
    """
    variant = config.spec.variant
    # The reader hands tensors over in no lasting order.
    found = sorted(pair_paths(file, shapes, config.spec), key=_by_number)
    try:
        parameters = parameters_of(
            *(found, config.target_parameters),
            modules=[stem for stem in found if config.names_module(stem)],
        )
    except AdapterError as error:
        raise AdapterError(f"{file}: {error}") from None
    kinds: dict[str, str] = {}
    # The outermost comes last in the module's own order, and first in the file.
    for stem in sorted(found, key=lambda stem: (_by_number(_bare(stem)), -len(stem))):
        embedding = pair_names(stem, "embedding")[0] in shapes
        kinds[parameters.get(stem, stem)] = (
            "experts" if stem in parameters else "embedding" if embedding else "linear"
        )
    expected: set[str] = set()
    for path, names in tensor_names(kinds, variant).items():
        kind = kinds[path]
        if lost := [name for name in names.values() if name not in shapes]:
            raise AdapterError(f"{file} lacks {lost[0]}; its pair is there")
        expected |= set(names.values())
        shape_A = shapes[names["A"]]
        rank = first_hit(config.spec.rank_pattern, path, config.spec.rank)
        fits = shape_A[0] % rank == 0 if kind == "experts" else shape_A[:1] == (rank,)
        if not fits:
            raise AdapterError(
                f"{file}: A of {path} is {shape_A}, but {CONFIG} says that its rank is {rank}"
            )
        if kind != "experts" and not config.selects(path):
            raise AdapterError(f"{file} has a pair for {path}, which {CONFIG} does not name")
        kinds[path] = "conv" if kind == "linear" and len(shape_A) > 2 else kind
    if extra := sorted(name for name in shapes if pair_of(name) and name not in expected):
        raise AdapterError(
            f"{file} holds {extra[0]}, which has no place in the variant {variant.name}; "
            + did_you_mean(extra[0], expected)
        )
    return kinds


def describe(
    folder: Path,
    config: PeftConfig,
    record: Record | None,
    spec: LoraSpec,
    ranks: Mapping[str, int],
    trainable_parameters: int,
    notes: tuple[str, ...] = (),
) -> AdapterInfo:
    """Put an AdapterInfo together from what was read."""
    return AdapterInfo(
        folder,
        spec,
        ranks,
        trainable_parameters,
        config.base_name,
        record.base if record else None,
        record.provenance if record else None,
        record.tensors_sha256 if record else None,
        notes,
    )


def pair_paths(file: Path, names: Iterable[str], spec: LoraSpec) -> list[str]:
    """Paths of the modules that a file has pairs for, in its order.

    Args:
        file: for messages.
        names: of all its tensors.
        spec: what the configuration says: also of what there is beside pairs.

    Raises:
        AdapterError: a tensor that is neither of a pair, nor beside the pairs, nor a whole embedding; or
            no pair.
    """
    paths: dict[str, None] = {}
    names = list(names)
    for name in names:
        if found := pair_of(name):
            paths[found[0]] = None
        elif whole_weight_of(name) is None and not belongs(name, spec):
            pairs = [other for other in names if pair_of(other)]
            near = f"; {did_you_mean(name, pairs)}" if pairs else ""
            raise AdapterError(f"{file} holds {name}: {foreign(name)}{near}")
    if not paths:
        raise AdapterError(f"{file} holds no pair: {len(names)} tensors, none is lora_A or lora_B")
    return list(paths)


def _bare(stem: str) -> str:
    """The module that a stem of nested wrappers stands for."""
    while stem.endswith(".base_layer"):
        stem = stem.removesuffix(".base_layer")
    return stem


def _by_number(path: str) -> list[tuple[int, str]]:
    """Sorts layers.2 before layers.10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in path.split(".")]
