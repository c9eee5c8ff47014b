"""`lorakit train --from`: an adapter to go on from, and what the result says of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lorakit.adapters import AdapterInfo, load_adapter, read_adapter
from lorakit.adapters.load import fit_stored
from lorakit.adapters.pairs import read_stored
from lorakit.adapters.store import content_id
from lorakit.config import RunConfig
from lorakit.errors import ConfigError, TargetError
from lorakit.lora import Plan, attach, detach, lora_layers, plan
from lorakit.run.named import Found, find_adapter
from lorakit.run.session import Session

# Options that mean something together: what is adapted, with which rank, at which scale. A start
# has no meaning for A and B that are there; dropout alone may be another than the parent's.
_TOGETHER = (
    ("targets", "exclude", "layers"),
    ("rank", "rank_pattern"),
    ("alpha", "alpha_pattern", "rslora"),
    ("init",),
)


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
        AdapterError, StoreError: it is not there, or is damaged.
    """
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
    except TargetError:  # its paths are those of before the base's modules moved
        fitted, _ = fit_stored(model, read_stored(parent.found.folder))
        spec = replace(fitted.spec, dropout=spec.dropout)
        own = plan(model, spec, any_rank=True)
    wanted = {target.path: (target.rank, target.scale) for target in own.targets}
    for group in _TOGETHER:
        asked = {name: getattr(config.lora, name) for name in group if name in config.given}
        differs = [name for name, value in asked.items() if value != getattr(spec, name)]
        if not differs:
            continue
        try:
            made = plan(model, replace(spec, **asked), any_rank=True)
            same = wanted == {t.path: (t.rank, t.scale) for t in made.targets}
        except (ConfigError, TargetError):
            same = False
        if not same or group == ("init",):
            name = differs[0]
            raise ConfigError(
                f"{name} is {_said(asked[name])}, and {parent.found.name}, which the run goes on "
                f"from, has {_said(getattr(spec, name))}: leave {name} out, or train without --from"
            )
    return own


def attach_parent(session: Session, parent: Parent, made: Plan) -> None:
    """Put the parent's A and B beside the session's model, ready to train.

    Raises:
        AdapterError, BaseMismatchError: see `lorakit.adapters.load_adapter`.
    """
    load_adapter(session.model, parent.found.folder, identity=session.identity)
    kept = {path: layer.tensors for path, layer in lora_layers(session.model).items()}
    # Attached anew: dropout may be another than the parent was trained with.
    attach(detach(session.model), made)
    for path, layer in lora_layers(session.model).items():
        for name, tensor in layer.tensors.items():
            tensor.data.copy_(kept[path][name])


def _said(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    if isinstance(value, Mapping):
        return str(dict(value))
    return str(value)
