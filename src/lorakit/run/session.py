"""A base model made ready: tokenizer, identity, template, and an adapter if one is asked for."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit.adapters import AdapterInfo, load_adapter, read_adapter
from lorakit.data import DataSpec, Template, resolve_template
from lorakit.errors import AdapterError, ConfigError
from lorakit.models import ModelSpec, identify, load_model
from lorakit.models.cache import Progress, no_progress
from lorakit.models.fingerprint import BaseIdentity


@dataclass(frozen=True)
class Session:
    """What every command that runs a model holds.

    Attributes:
        model, tokenizer: ready and frozen; the adapter's pairs attached where there is one.
        identity: fingerprint of the base.
        template: how a prompt is put to the model.
        adapter: what was attached, or None.
    """

    model: Any
    tokenizer: Any
    identity: BaseIdentity
    template: Template
    adapter: AdapterInfo | None = None

    @property
    def context_length(self) -> int:
        """Longest sequence that the model reads, in tokens."""
        return int(self.model.config.get_text_config().max_position_embeddings)


def open_base(
    spec: ModelSpec, data: DataSpec | None = None, *, progress: Progress = no_progress
) -> Session:
    """Load a base model and what belongs to it."""
    model, tokenizer = load_model(spec, progress=progress)
    template = resolve_template(data or DataSpec(), tokenizer)
    return Session(model, tokenizer, identify(spec), template)


def open_adapted(
    spec: ModelSpec,
    adapter: Path | None,
    data: DataSpec | None = None,
    *,
    force: bool = False,
    progress: Progress = no_progress,
) -> Session:
    """Load a base and attach an adapter to it; its own template is used unless one is asked for.

    Raises:
        AdapterError, BaseMismatchError: see `lorakit.adapters.load_adapter`.
    """
    if adapter is None:
        return open_base(spec, data, progress=progress)
    known = read_adapter(adapter)
    session = open_base(spec, data, progress=progress)
    info = load_adapter(session.model, adapter, identity=session.identity, force=force)
    recorded = known.provenance.get("template") if known.provenance else None
    if recorded and (data is None or data.template == "auto"):
        try:
            session = replace(session, template=Template.from_dict(recorded))
        except ConfigError as error:
            raise AdapterError(f"{adapter}: its recorded template is damaged: {error}") from None
        if data is not None and data.system:
            session = replace(session, template=replace(session.template, system=data.system))
    return replace(session, adapter=info)
