"""The paths that an adapter's file has for modules -> the paths that a model has.

They differ where transformers moved modules after the adapter was trained: the language model of a
vision-language model lies at `model.language_model` since transformers 4.52, and at `language_model.model`
before. transformers renames a base's weights while it loads them, and peft an adapter's, by one list of
rules; lorakit goes by the same list. Experts that were modules are one parameter now: older_experts.py.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import Tensor, nn

from lorakit.adapters.beside import belongs, module_path
from lorakit.adapters.names import PREFIX, pair_of, whole_weight_of
from lorakit.adapters.older_experts import Bare, older_parts, present_ranks, with_present_experts
from lorakit.adapters.pairs import AdapterFiles, StoredAdapter, stored_of
from lorakit.adapters.peft_config import PeftConfig, compact
from lorakit.lora.spec import LoraSpec
from lorakit.lora.targets import first_hit
from lorakit.models.weights import names_in_model


def for_model(model: nn.Module, opened: AdapterFiles) -> AdapterFiles:
    """The files of an adapter by the paths of a model; themselves where all are the model's own.

    Args:
        model: the base; may be on the meta device.
        opened: an adapter's files.
    """
    spec = opened.config.spec
    paths = {name: _path_of(name, spec) for name in opened.tensors}
    pairs = {found[0] for name in opened.tensors if (found := pair_of(name))}
    moved = moved_paths(model, {path for path in paths.values() if path})
    if not moved:
        return _with_present_experts(model, opened, pairs)
    tensors = {}
    for name, tensor in opened.tensors.items():
        path = paths[name]
        if path in moved:
            name = PREFIX + moved[path] + name[len(PREFIX) + len(path) :]
        tensors[name] = tensor
    config = _moved_config(opened.config, pairs, moved)
    notes = (*opened.notes, _note(moved))
    opened = replace(opened, config=config, tensors=tensors, notes=notes)
    return _with_present_experts(model, opened, {moved.get(path, path) for path in pairs})


def _with_present_experts(
    model: nn.Module, opened: AdapterFiles, paths: Collection[str]
) -> AdapterFiles:
    if not older_parts(model, paths):
        return opened
    adapter = with_present_experts(model, stored_of(opened))
    return replace(adapter.opened, notes=adapter.notes)


def stored_for_model(
    model: nn.Module, adapter: StoredAdapter, bare: Bare | None = None
) -> StoredAdapter:
    """The same for an adapter as a value; `bare` as for `older_parts`."""
    beside = {path for name in adapter.beside if (path := module_path(name))}
    if moved := moved_paths(model, {*adapter.pairs, *beside}):
        adapter = replace(
            adapter,
            config=_moved_config(adapter.config, adapter.pairs, moved),
            pairs={moved.get(path, path): pair for path, pair in adapter.pairs.items()},
            beside=_moved_beside(adapter.beside, moved),
            notes=(*adapter.notes, _note(moved)),
        )
    return with_present_experts(model, adapter, bare)


def _moved_beside(beside: Mapping[str, Tensor], moved: Mapping[str, str]) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in beside.items():
        path = module_path(name) or ""
        rest = name[len(PREFIX) + len(path) :]
        tensors[PREFIX + moved[path] + rest if path in moved else name] = tensor
    return tensors


def ranks_for_model(
    model: nn.Module, ranks: Mapping[str, int], bare: Bare | None = None
) -> dict[str, int]:
    """Ranks of an adapter by the paths of a model; `bare` as for `older_parts`."""
    moved = moved_paths(model, ranks)
    by_path = {moved.get(path, path): rank for path, rank in ranks.items()}
    return present_ranks(model, by_path, bare)


def _path_of(name: str, spec: LoraSpec) -> str | None:
    if found := pair_of(name):
        return found[0]
    return module_path(name) if belongs(name, spec) else whole_weight_of(name)


def moved_paths(model: nn.Module, paths: Collection[str]) -> dict[str, str]:
    """The model's path by the file's, of those that the model has not and its rules know.

    Args:
        model: the base; may be on the meta device.
        paths: of modules, as an adapter's file has them.
    """
    own = {path for path, _ in model.named_modules()}
    lost = [path for path in paths if path not in own]
    if not lost:
        return {}
    renamed = names_in_model(model, [f"{path}.weight" for path in lost])
    found = {
        old.removesuffix(".weight"): new.removesuffix(".weight") for old, new in renamed.items()
    }
    # Saved from inside DDP inside peft: only where the model has no module of that name.
    found |= {p: p.removeprefix("module.") for p in lost if p.startswith("module.")}
    return {old: new for old, new in found.items() if new in own}


def _moved_config(
    config: PeftConfig, paths: Collection[str], moved: Mapping[str, str]
) -> PeftConfig:
    """The configuration with the model's paths; what its patterns said of the file's own still holds.

    A configuration may name the model's own paths already, where the file has older ones for peft's sake.
    """
    chosen = [path for path in paths if _selects(config, path, moved)]
    values = (
        (config.spec.rank_pattern, config.spec.rank),
        (config.spec.alpha_pattern, config.spec.alpha),
    )
    (rank, ranks), (alpha, alphas) = (
        compact(
            {
                moved.get(path, path): first_hit(
                    known, path, first_hit(known, moved.get(path, path), default)
                )
                for path in paths
            }
        )
        for known, default in values
    )
    targets = tuple(moved.get(path, path) for path in chosen)
    as_before = bool(targets) and all(map(config.selects, targets))
    spec = replace(
        config.spec,
        rank=int(rank),
        alpha=float(alpha),
        rank_pattern={key: int(value) for key, value in ranks.items()},
        alpha_pattern=alphas,
        targets=config.spec.targets if as_before or not targets else targets,
    )
    if as_before or not targets:
        return replace(config, spec=spec)
    return replace(
        config, spec=spec, target_modules=targets, exclude=(), layers=None, layers_pattern=()
    )


def _selects(config: PeftConfig, path: str, moved: Mapping[str, str]) -> bool:
    return config.selects(path) or (path in moved and config.selects(moved[path]))


def _note(moved: Mapping[str, str]) -> str:
    old = next(iter(moved))
    return (
        f"{len(moved)} modules have moved in transformers since the adapter was trained, such as "
        f"{old}, which is {moved[old]} now"
    )
