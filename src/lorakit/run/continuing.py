"""`lorakit train --from`: an adapter to go on from, its moments, and the rate to go on with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lorakit.adapters import AdapterInfo, load_adapter, read_adapter
from lorakit.adapters.attached import (
    attached_rows,
    remember_moments,
    remember_rows,
)
from lorakit.adapters.load import fit_stored
from lorakit.adapters.moments import read_moments
from lorakit.adapters.pairs import read_stored
from lorakit.adapters.store import content_id
from lorakit.adapters.trained_rows import read_trained_rows
from lorakit.config import RunConfig
from lorakit.data import Dataset, TokenTable
from lorakit.errors import ConfigError, TargetError
from lorakit.lora import Plan, attach, detach, lora_layers, plan
from lorakit.lora.changing import changes_of, put
from lorakit.lora.variants import PEFT_VALUES, variant_options
from lorakit.run.fitting import Report, peak_rate
from lorakit.run.named import Found, find_adapter
from lorakit.run.rate_probe import ProbedRate, probe_rate
from lorakit.run.rehearsing import Rehearsing, check_new_row_weight, known_rows, rehearse
from lorakit.run.remembering import moments_of, unread
from lorakit.run.session import Session
from lorakit.run.token_rows import with_token_rows
from lorakit.tasks import Task
from lorakit.training import Moments, Schedule, TrainSpec

# Options that mean something together: what is adapted, with which rank, at which scale. A start
# has no meaning for A and B that are there; dropout alone may be another than the parent's.
_TOGETHER = (
    ("targets", "target_parameters", "exclude", "layers"),
    ("rank", "rank_pattern"),
    ("alpha", "alpha_pattern", *variant_options()),
    ("init",),
    ("modules_to_save", "keep_ties"),
    ("token_rows", "train_tokens"),
    ("bias", "lora_bias"),
    tuple(PEFT_VALUES.values()),
)
# What no plan compares: another value is another adapter.
_EXACT = (("init",), *_TOGETHER[-4:])
# Without moments the first steps move every element by the whole rate, whatever its gradient.
_WARMUP_STEPS, _WARMUP_SHARE = 10, 0.25


@dataclass(frozen=True)
class Parent:
    """The adapter that a run goes on from.

    Attributes:
        found: its folder, and what it is called.
        info: what the folder says of itself.
        content: its content id, see `lorakit.adapters.store`.
    """

    found: Found
    info: AdapterInfo
    content: str

    def to_dict(self) -> dict[str, Any]:
        """As one of the `parents` in the result's provenance."""
        return {
            "name": self.found.name,
            "content_sha256": self.content,
            "tensors_sha256": self.info.tensors_sha256,
        }


def find_parent(config: RunConfig) -> Parent | None:
    """The adapter that `config.start` names, read without a model; None where none is named.

    Raises:
        ConfigError: an option is given that only a run with a parent has.
        AdapterError, StoreError: it is not there, or is damaged.
    """
    check_new_row_weight(config.train, going_on=config.start.parent is not None)
    if config.start.parent is None:
        return None
    found = find_adapter(config.start.parent, config.output.store)
    return Parent(found, read_adapter(found.folder), content_id(found.folder))


def settled(config: RunConfig, parent: Parent | None) -> RunConfig:
    """The configuration with what the parent brings in its place, for the run's config.yaml.

    A name is pinned to the version that it means now: 'invoices' becomes 'invoices@3'.
    """
    if parent is None:
        return config
    dropout = config.lora if "dropout" in config.given else parent.info.spec
    return replace(
        config,
        lora=replace(parent.info.spec, dropout=dropout.dropout),
        start=replace(config.start, parent=parent.found.name),
    )


def run_plan(session: Session, config: RunConfig, parent: Parent | None) -> tuple[RunConfig, Plan]:
    """What a run adapts, and the configuration that says so: with what the parent brings, or with rows of
    the embedding in the place of tokens' texts.

    Raises:
        ConfigError, TargetError: see `with_token_rows`, `plan` and `plan_from`.
    """
    if parent is not None:
        return settled(config, parent), plan_from(session.model, config, parent)
    lora = with_token_rows(config.lora, session.model, session.tokenizer)
    return replace(config, lora=lora), plan(session.model, lora)


def plan_from(model: nn.Module, config: RunConfig, parent: Parent) -> Plan:
    """The parent's own plan on a model, once no option that was given contradicts it.

    An option contradicts where it would adapt other modules, or with another rank or scale.

    Args:
        model: the base, without pairs.
        config: as it was asked for, before `settled`.
        parent: where A and B come from.

    Raises:
        ConfigError: an option contradicts; the message says which.
    """
    spec = settled(config, parent).lora
    try:
        own = plan(model, spec, any_rank=True)
        as_saved = parent.info.ranks.keys() <= {target.path for target in own.targets}
    except TargetError:
        as_saved = False
    if not as_saved:  # its paths are those of before the base's modules moved, or became one
        fitted, _ = fit_stored(model, read_stored(parent.found.folder))
        dropout = spec.dropout
        if fitted.spec.target_parameters and "dropout" not in config.given:
            dropout = 0.0
        spec = replace(fitted.spec, dropout=dropout)
        own = plan(model, spec, any_rank=True)
    wanted = {target.path: (target.rank, target.scale, target.variant) for target in own.targets}
    for group in _TOGETHER:
        asked = {name: getattr(config.lora, name) for name in group if name in config.given}
        differs = [name for name, value in asked.items() if value != getattr(spec, name)]
        if not differs:
            continue
        try:
            made = plan(model, replace(spec, **asked), any_rank=True)
            same = wanted == {t.path: (t.rank, t.scale, t.variant) for t in made.targets}
        except (ConfigError, TargetError):
            same = False
        if not same or group in _EXACT:
            name = differs[0]
            raise ConfigError(
                f"{name} is {_said(asked[name])}, and {parent.found.name}, which the run goes on "
                f"from, has {_said(getattr(spec, name))}: leave {name} out, or train without --from"
            )
    return own


def attach_parent(session: Session, parent: Parent, made: Plan) -> tuple[str, ...]:
    """Put the parent's A and B beside the session's model, ready to train, and what it records.

    Returns:
        A sentence for each file in its folder that cannot be used.

    Raises:
        AdapterError, BaseMismatchError: see `lorakit.adapters.load_adapter`.
    """
    load_adapter(session.model, parent.found.folder, identity=session.identity)
    kept = {path: layer.tensors for path, layer in lora_layers(session.model).items()}
    beside = [change.value.clone() for change in changes_of(session.model)]
    # Attached anew: dropout may be another than the parent was trained with.
    attach(detach(session.model), made)
    for path, layer in lora_layers(session.model).items():
        for name, tensor in layer.tensors.items():
            tensor.data.copy_(kept[path][name])
    put(session.model, made.whole, beside, trainable=True)
    layers = lora_layers(session.model)
    moments, why = read_moments(parent.found.folder, layers, parent.info.tensors_sha256)
    remember_moments(session.model, moments)
    rows, unknown = read_trained_rows(parent.found.folder, parent.info.tensors_sha256)
    remember_rows(session.model, rows)
    return unread(why, unknown)


@dataclass(frozen=True)
class Beginning:
    """How a run goes on from pairs that are trained already.

    Attributes:
        schedule: with the rate and the warm-up to go on with.
        moments: AdamW's, of the parent; None where it has none.
        probed: how the rate was found; None where it was given.
        notes: sentences for the user.
        rehearsing: which rows are new to the parent, and how often they are taken.
    """

    schedule: Schedule
    moments: Moments | None
    probed: ProbedRate | None
    notes: tuple[str, ...]
    rehearsing: Rehearsing

    @property
    def learning_rate(self) -> float:
        """The peak."""
        return self.schedule.learning_rate


def go_on(
    model: Any,
    data: Dataset,
    judged: Sequence[TokenTable],
    steps: int,
    spec: TrainSpec,
    *,
    task: Task,
    recompute: bool = False,
    full: bool = False,
    probed: ProbedRate | None = None,
    lost: Sequence[str] = (),
    should_stop: Callable[[], bool] = lambda: False,
    report: Report = lambda event: None,
) -> Beginning:
    """Settle rate, warm-up and moments of a run from the pairs that a model has.

    A learning rate that is given is taken, with the warm-up that is given. With 'auto' a probe
    finds it, and where there are no moments the warm-up takes ten steps, or a quarter of them.

    Args:
        model: with the pairs to go on from.
        data: the run's rows.
        judged: tables of held-out rows for the probe.
        steps: of the run.
        spec: as it was asked for.
        task: what is trained for.
        recompute: activation checkpointing.
        full: every parameter of the base is trained.
        probed: what an interrupted run's probe found; it is not repeated.
        lost: what cannot be used of the parent's folder, of `attach_parent`.
        should_stop: asked between the probe's steps.
        report: told of each try.

    Raises:
        DivergedError, InterruptedRunError: see `probe_rate`.
    """
    moments, why = moments_of(model)
    trained, unknown = attached_rows(model)
    rehearsing = rehearse(trained, data.train_hashes, steps, spec)
    notes = [
        *lost,
        *unread(why, unknown),
        *rehearsing.notes,
        *known_rows(trained, data.eval_hashes),
    ]
    rule = peak_rate(model, steps, spec, full=full)
    if spec.learning_rate != "auto":
        return Beginning(Schedule(steps, rule, spec), moments, None, tuple(notes), rehearsing)
    if moments is None:
        share = min(_WARMUP_SHARE, _WARMUP_STEPS / steps)
        spec = replace(spec, warmup=max(spec.warmup, share))
    if probed is None:
        probed = probe_rate(
            model,
            data.train,
            judged,
            rule,
            steps,
            spec,
            task=task,
            recompute=recompute,
            moments=moments,
            rehearsal=rehearsing.rehearsal,
            should_stop=should_stop,
            report=report,
        )
    schedule = Schedule(steps, probed.learning_rate, spec)
    return Beginning(schedule, moments, probed, (*notes, probed.note), rehearsing)


def _said(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, Mapping):
        return str(dict(value))
    return str(value)
