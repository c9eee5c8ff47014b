"""Names of a file -> modules of a base; pairs by module -> an adapter of that base."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lorakit.adapters.load import fit_stored
from lorakit.adapters.naming import describe_targets
from lorakit.adapters.pairs import Pair, StoredAdapter
from lorakit.adapters.peft_config import PeftConfig, compact
from lorakit.adapters.peft_experts import taken_of
from lorakit.adapters.peft_names import moved_for_peft
from lorakit.adapters.provenance import Identity, make_record
from lorakit.errors import AdapterError, did_you_mean
from lorakit.lora import LoraSpec
from lorakit.lora.kinds import geometry_of, kind_of


def kinds_of(model: nn.Module) -> dict[str, str]:
    """The kind of every module of a model that can be adapted, by path."""
    kinds = ((path, kind_of(module)) for path, module in model.named_modules())
    return {path: kind for path, kind in kinds if kind}


def find_module(file: Path, name: str, paths: Collection[str]) -> str:
    """The path of the module that a file calls `name`.

    The two may differ in what stands before: a trainer's wrapper in the file (`module.`), or the
    name of the model's body in the base (`transformer.`).

    Raises:
        AdapterError: no module, or several, can be meant.
    """
    tail = name
    while True:
        if tail in paths:
            return tail
        ends = [path for path in paths if path.endswith("." + tail)]
        if len(ends) == 1 and "." in tail:
            return ends[0]
        _, dot, tail = tail.partition(".")
        if not dot:
            raise AdapterError(
                f"{file} has a pair for {name}, and the base has no such module; "
                + did_you_mean(name, paths)
            )


def as_adapter(
    pairs: Mapping[str, Pair],
    model: nn.Module,
    *,
    source: Path,
    identity: Identity,
    method: Mapping[str, Any],
) -> StoredAdapter:
    """Pairs as an adapter of a base, once they fit it.

    Args:
        pairs: by module path.
        model: the base, which may be on the meta device.
        source: what they were read from.
        identity: the base's fingerprint.
        method: how it was imported, for the record.

    Raises:
        AdapterError: a pair's shapes are not those of its module.
    """
    for path, pair in pairs.items():
        if pair.kind == "conv":
            raise AdapterError(f"{source}: {path} is a convolution, which is not imported")
        geometry = geometry_of(model.get_submodule(path), path)
        found = (tuple(pair.A.shape), tuple(pair.B.shape))
        if found != geometry.pair_shapes(pair.rank):
            raise AdapterError(
                f"{source}: A and B of {path} are {found[0]} and {found[1]}; its layer of "
                f"{geometry.in_features} inputs and {geometry.out_features} outputs makes them "
                "{} and {}".format(*geometry.pair_shapes(pair.rank))
            )
    named = describe_targets(list(pairs), [path for path, _ in model.named_modules() if path])
    rank, ranks = compact({path: pair.rank for path, pair in pairs.items()})
    alpha, alphas = compact({path: pair.alpha for path, pair in pairs.items()})
    spec = LoraSpec(
        rank=rank,
        alpha=alpha,
        targets=tuple(pairs) if isinstance(named, str) else named,
        rank_pattern=ranks,
        alpha_pattern=alphas,
    )
    config = PeftConfig(
        spec,
        named,
        base_name=identity.name,
        revision=identity.revision,
        task_type="CAUSAL_LM",
        fan_in_fan_out=all(pair.kind == "conv1d" for pair in pairs.values()),
        taken=taken_of(model),
        moved=moved_for_peft(model, {path: pair.kind for path, pair in pairs.items()})[0],
    )
    record = make_record(spec, "", identity.to_dict(), {"method": dict(method)})
    made = StoredAdapter(source, config, record, pairs)
    fit_stored(model, made)
    return made
