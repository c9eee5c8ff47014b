"""What adapters must have in common to become one, and what the result says of its parents."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lorakit.adapters.asking import common_asking
from lorakit.adapters.naming import exactly
from lorakit.adapters.pairs import StoredAdapter
from lorakit.adapters.peft_config import PeftConfig, compact
from lorakit.adapters.provenance import Record, check_alike, make_record
from lorakit.adapters.trained_rows import TrainedRows, read_trained_rows
from lorakit.errors import ConfigError, did_you_mean
from lorakit.lora.spec import LoraSpec
from lorakit.lora.targets import first_hit, pattern_hits


@dataclass(frozen=True, eq=False)
class Part:
    """An adapter with its weight.

    Attributes:
        adapter: as `read_stored` gives it.
        weight: negative to subtract what it learned.
        weight_pattern: other weights for some modules, by peft's rule for patterns (the regular
            expression ``(.*\\.)?(key)$`` on the path, first hit wins).
        name: what the user calls it; default: its folder.
    """

    adapter: StoredAdapter
    weight: float = 1.0
    weight_pattern: Mapping[str, float] = field(default_factory=dict)
    name: str | None = None


def weights_by_path(part: Part) -> dict[str, float]:
    """The weight of each module of an adapter.

    Raises:
        ConfigError: a weight is not finite, or a pattern means no module.
    """
    paths = list(part.adapter.pairs)
    called = part.name or part.adapter.source
    for key, weight in [("", part.weight), *part.weight_pattern.items()]:
        if not math.isfinite(weight):
            raise ConfigError(f"the weight of {called}{f' for {key!r}' if key else ''} is {weight}")
        if key and not pattern_hits(key, paths):
            names = {path.rsplit(".", 1)[-1] for path in paths}
            raise ConfigError(
                f"a weight of {called} is for {key!r}, which means none of its "
                f"modules; {did_you_mean(key, names)}"
            )
    return {path: first_hit(part.weight_pattern, path, part.weight) for path in paths}


def common_config(parts: Sequence[Part], *, force: bool) -> tuple[PeftConfig, list[str]]:
    """The configuration of an adapter made of these, its ranks left to be set, and notes.

    Raises:
        BaseMismatchError: the recorded bases differ, unless `force`.
    """
    adapters = [part.adapter for part in parts]
    notes: list[str] = []
    known = [a for a in adapters if a.record is not None and a.record.base is not None]
    if len(adapters) > 1:
        for other in known[1:]:
            if not force:
                check_alike(known[0].source, known[0].record, other.source, other.record)
        for adapter in adapters:
            if adapter not in known:
                notes.append(
                    f"{adapter.source} does not record its base: only the shapes of its modules "
                    "were compared"
                )
    first = (known or adapters)[0].config
    configs = [adapter.config for adapter in adapters]
    targets: tuple[str, ...] | str
    if all(config.plain for config in configs):
        # Each list selects exactly its own adapter's modules in the model; so does their union.
        targets = tuple(sorted({name for config in configs for name in config.target_modules}))
    else:
        targets = exactly(dict.fromkeys(path for a in adapters for path in a.pairs))
    made = replace(
        first,
        target_modules=targets,
        exclude=(),
        layers=None,
        layers_pattern=(),
        taken=tuple(sorted({name for config in configs for name in config.taken})),
        moved={path: there for config in configs for path, there in config.moved.items()},
    )
    return made, notes


@dataclass(frozen=True)
class Made:
    """Configuration and record of a made adapter, and the rows that its parents were trained on."""

    config: PeftConfig
    record: Record
    rows: TrainedRows | None


def made_of(
    parts: Sequence[Part],
    config: PeftConfig,
    ranks: Mapping[str, int],
    *,
    method: Mapping[str, Any],
    notes: list[str],
) -> Made:
    """Configuration and record of an adapter whose pairs have scale 1 (alpha = rank).

    Args:
        parts: what it was made of.
        config: see `common_config`.
        ranks: of its modules by path.
        method: what was done, for the record.
        notes: appended to where the parents' templates or mappings differ.
    """
    spec = unit_spec(ranks, config.target_modules)
    parents, templates, told, base = [], [], [], None
    for part in parts:
        record = part.adapter.record
        parents.append(
            {
                "name": part.name or str(part.adapter.source),
                "tensors_sha256": record.tensors_sha256 if record else None,
                "weight": part.weight,
                "weight_pattern": dict(part.weight_pattern),
            }
        )
        base = base or (record.base if record else None)
        told.append(record.provenance if record else None)
        templates.append((told[-1] or {}).get("template"))
    provenance: dict[str, Any] = {"parents": parents, "method": dict(method)}
    if asking := common_asking(told, notes):
        provenance["asking"] = asking
    if all(template == templates[0] for template in templates):
        if templates[0] is not None:
            provenance["template"] = templates[0]
    else:
        notes.append(
            "the adapters were trained with different templates: none is recorded, so the "
            "model's own will be used"
        )
    record = make_record(spec, "", base, provenance)
    return Made(replace(config, spec=spec), record, _rows_of(parts))


def _rows_of(parts: Sequence[Part]) -> TrainedRows | None:
    """The rows that any of these records; None where none of them records any."""
    known = None
    for part in parts:
        record = part.adapter.record
        digest = record.tensors_sha256 if record else None
        rows, _ = read_trained_rows(part.adapter.source, digest)
        if rows is not None:
            known = rows if known is None else known | rows
    return known


def unit_spec(ranks: Mapping[str, int], target_modules: tuple[str, ...] | str) -> LoraSpec:
    """The spec of an adapter all of whose pairs have scale 1: alpha = rank, module by module.

    Args:
        ranks: by path.
        target_modules: of its configuration.
    """
    rank, pattern = compact(ranks)
    return LoraSpec(
        rank=rank,
        alpha=float(rank),
        targets=tuple(ranks) if isinstance(target_modules, str) else target_modules,
        rank_pattern=pattern,
        alpha_pattern={key: float(value) for key, value in pattern.items()},
    )


def method_of(spec: Any, **figures: float) -> dict[str, Any]:
    """A spec of this room as the record keeps it, options that were not given left out."""
    given = {key: value for key, value in asdict(spec).items() if value is not None}
    return {**given, **figures}
