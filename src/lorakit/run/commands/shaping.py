"""`lorakit adapters combine | extract | shrink`: adapters made of others, or of two models."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit.adapters.asking import asking_of
from lorakit.adapters.combine import Combined, combine
from lorakit.adapters.extract import Extracted, extract
from lorakit.adapters.pairs import StoredAdapter, read_stored, write_stored
from lorakit.adapters.parents import Part
from lorakit.adapters.peft_experts import taken_of
from lorakit.adapters.peft_names import moved_for_peft
from lorakit.adapters.shrink import shrink
from lorakit.adapters.specs import CombineSpec, ShrinkSpec
from lorakit.adapters.store import Store
from lorakit.config import RunConfig
from lorakit.data import check_sources
from lorakit.errors import ConfigError, did_you_mean
from lorakit.files.cache import Progress, no_progress
from lorakit.lora import plan
from lorakit.models import ModelSpec, empty_model, identify
from lorakit.models.sources import resolve
from lorakit.models.weights import find, tensors_of
from lorakit.run.commands.evaluation import run_evaluation
from lorakit.run.commands.trying import Told, Tried, try_ways, with_scores
from lorakit.run.folder import check_folder
from lorakit.run.named import Found, find_adapter
from lorakit.run.recorded import reading_rows, with_recorded
from lorakit.run.weighted import parse_weighted


@dataclass(frozen=True)
class Output:
    """Where a made adapter goes: into a folder, or under a name of the store.

    Raises:
        ConfigError: not exactly one of the two.
    """

    out: Path | None = None
    name: str | None = None
    store: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.out is None) == (self.name is None):
            raise ConfigError("say where it goes: --out FOLDER, or --name NAME in the store")
        if self.out is not None:
            check_folder(self.out, resume=False)

    def keep(self, adapter: StoredAdapter) -> str:
        """Write the adapter; where it is now, in words."""
        if self.out is not None:
            return str(write_stored(self.out, adapter))
        assert self.name is not None
        with tempfile.TemporaryDirectory() as place:
            folder = write_stored(Path(place) / "adapter", adapter)
            entry = Store(self.store).add(folder, self.name).entry
        return f"{entry} in the store"


def run_combine(
    weighted: Sequence[str],
    spec: CombineSpec,
    output: Output,
    *,
    layer_weights: Sequence[str] = (),
    force: bool = False,
) -> tuple[Combined, str]:
    """Put adapters together and keep the result.

    Args:
        weighted: 'a:0.7', 'b': folders or names of the store, with weights.
        spec: the way.
        output: where the result goes.
        layer_weights: 'a:PATTERN=WEIGHT', other weights for some modules of one of them.
        force: combine although the bases differ.

    Returns:
        What was made, and where it is.

    Raises:
        InputError: something given cannot be used.
    """
    _, parts = _read_parts(weighted, layer_weights, output)
    made = combine(parts, spec, source=output.name or str(output.out), force=force)
    return made, output.keep(made.adapter)


def run_combine_best(
    config: RunConfig,
    weighted: Sequence[str],
    options: Mapping[str, Any],
    output: Output,
    *,
    layer_weights: Sequence[str] = (),
    force: bool = False,
    progress: Progress = no_progress,
    told: Told = lambda *_: None,
) -> Tried:
    """Measure every way to combine adapters on their own rows, and keep the best or the one named.

    Args:
        config: `data.data` names the rows of each adapter's task, in the order of the adapters.
        weighted: as for `run_combine`.
        options: fields of `CombineSpec` that were given; with how that way is kept.
        output: where the result goes.
        layer_weights: as for `run_combine`.
        force: combine and measure although the bases differ.
        progress: told of a download of the built-in model.
        told: told of each measurement.

    Raises:
        InputError: something given cannot be used.
    """
    check_sources(config.data.data)
    adapters, parts = _read_parts(weighted, layer_weights, output)
    tried = try_ways(
        *(config, adapters, parts, options),
        source=output.name or str(output.out),
        force=force,
        progress=progress,
        told=told,
    )
    return replace(tried, place=output.keep(with_scores(tried).adapter))


def _read_parts(
    weighted: Sequence[str], layer_weights: Sequence[str], output: Output
) -> tuple[list[Found], list[Part]]:
    named = [parse_weighted(text) for text in weighted]
    patterns = _patterns(layer_weights, [name for name, _ in named])
    adapters = [find_adapter(name, output.store) for name, _ in named]
    parts = [
        Part(read_stored(found.folder), weight, patterns.get(name, {}), found.name)
        for found, (name, weight) in zip(adapters, named, strict=True)
    ]
    return adapters, parts


def run_extract(
    config: RunConfig,
    tuned: str,
    output: Output,
    *,
    rank: int | None,
    energy: float | None,
    progress: Progress = no_progress,
) -> tuple[Extracted, str]:
    """Make an adapter out of two full models and keep it.

    Args:
        config: `model` names the base, `lora` which modules get a pair.
        tuned: the other model: a folder, a GGUF file or a hub id.
        output: where the result goes.
        rank: at most this for each layer.
        energy: share of each layer's squared difference to keep.
        progress: told of a download of the built-in model.

    Raises:
        InputError: something given cannot be used; the models are of different architectures.
    """
    model = empty_model(config.model)
    # A rank of 1 fits every module; the real one is cut to each module's size.
    made_plan = plan(model, replace(config.lora, rank=1, rank_pattern={}))
    places = []
    identities = []
    fine_tuned = ModelSpec(model=tuned, ignore_adapter=config.model.ignore_adapter)
    for spec in (config.model, fine_tuned):
        held = tensors_of(resolve(spec, progress=progress).folder)
        places.append(find(model, [name for name, _ in model.named_parameters()], held))
        identities.append(identify(spec))
    made = extract(
        made_plan.targets,
        [path for path, _ in model.named_modules() if path],
        places[0],
        places[1],
        rank=rank,
        energy=energy,
        identity=identities[0],
        tuned_identity=identities[1],
        taken=taken_of(model),
        moved=moved_for_peft(model, {t.path: t.geometry.kind for t in made_plan.targets})[0],
    )
    return made, output.keep(of_base(made.adapter, config.model))


def of_base(adapter: StoredAdapter, base: ModelSpec) -> StoredAdapter:
    """The adapter with its base in its record, by a name under which it is found again."""
    assert adapter.record is not None
    told = {**(adapter.record.provenance or {}), "asking": asking_of(base)}
    return replace(adapter, record=replace(adapter.record, provenance=told))


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A smaller adapter and what became of its loss.

    Attributes:
        made: the adapter, and what was cut.
        parameters: before and after.
        losses: held-out nats per token before and after; None where there were no rows.
        place: where it is.
        notes: how the rows were read and measured, one sentence each.
    """

    made: Combined
    parameters: tuple[int, int]
    losses: tuple[float, float] | None
    place: str
    notes: tuple[str, ...] = ()


def run_shrink(
    config: RunConfig,
    adapter: str,
    spec: ShrinkSpec,
    output: Output,
    *,
    force: bool = False,
    progress: Progress = no_progress,
) -> Shrunk:
    """Cut an adapter's ranks, and measure both on held-out rows where there are some.

    Args:
        config: `data.data` names the rows, `model` the base that they are measured with: the
            adapter's own where none was given.
        adapter: a folder or a name of the store.
        spec: how far to cut.
        output: where the result goes.
        force: measure although the adapter belongs to another base.
        progress: told of a download of the built-in model.

    Raises:
        InputError: something given cannot be used.
    """
    found = find_adapter(adapter, output.store)
    folder, before = found.folder, read_stored(found.folder)
    made = shrink(before, spec, name=found.name)
    losses, notes = None, ()
    if config.data.data:
        given, config = config, with_recorded(config, found)
        with tempfile.TemporaryDirectory() as place, reading_rows(given, config, found):
            smaller = write_stored(Path(place) / "adapter", made.adapter)
            first, second = (
                run_evaluation(
                    config, adapter=one, metrics="none", out=None, force=force, progress=progress
                )
                for one in (folder, smaller)
            )
        losses, notes = (first["eval_loss"], second["eval_loss"]), tuple(first["notes"])
        made = replace(made, adapter=_with_losses(made.adapter, losses))
    counts = tuple(a.info.trainable_parameters for a in (before, made.adapter))
    return Shrunk(made, (counts[0], counts[1]), losses, output.keep(made.adapter), notes)


def _patterns(texts: Sequence[str], names: Sequence[str]) -> Mapping[str, dict[str, float]]:
    """'a:PATTERN=WEIGHT' by adapter."""
    found: dict[str, dict[str, float]] = {}
    for text in texts:
        left, equals, weight = text.rpartition("=")
        name = next((n for n in names if left.startswith(f"{n}:")), None)
        if not equals or name is None:
            raise ConfigError(
                f"layer weight {text!r}: write ADAPTER:PATTERN=WEIGHT with one of the adapters; "
                + did_you_mean(left.split(":")[0], names)
            )
        try:
            found.setdefault(name, {})[left[len(name) + 1 :]] = float(weight)
        except ValueError:
            raise ConfigError(f"layer weight {text!r}: {weight!r} is no number") from None
    return found


def _with_losses(adapter: StoredAdapter, losses: tuple[float, float]) -> StoredAdapter:
    """The adapter with the measured losses in its record."""
    assert adapter.record is not None
    told = {
        **(adapter.record.provenance or {}),
        "metrics": {"eval_loss": losses[1], "eval_loss_of_parent": losses[0]},
    }
    return replace(adapter, record=replace(adapter.record, provenance=told))
