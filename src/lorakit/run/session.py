"""A base model made ready: tokenizer, identity, template, and an adapter if one is asked for."""

from dataclasses import replace
from pathlib import Path

from lorakit.adapters import AdapterInfo, load_adapter, read_adapter
from lorakit.adapters.provenance import check_base, read_record
from lorakit.adapters.saved_template import saved_chat_template
from lorakit.data import DataSpec, Template
from lorakit.data.template import chat_template
from lorakit.errors import AdapterError, ConfigError
from lorakit.files.cache import Progress, no_progress
from lorakit.models import ModelSpec
from lorakit.run.named import Found, find_adapter
from lorakit.tasks import CAUSAL_LM, Session

__all__ = ["Session", "open_adapted", "open_base", "recorded_template"]


def open_base(
    spec: ModelSpec, data: DataSpec | None = None, *, progress: Progress = no_progress
) -> Session:
    """Load a base model and what belongs to it, for the task that is trained."""
    return CAUSAL_LM.load(spec, data, progress=progress)


def open_adapted(
    spec: ModelSpec,
    adapter: str | Path | Found | None,
    data: DataSpec | None = None,
    *,
    store: str | Path | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> Session:
    """Load a base and attach an adapter to it; its own template is used unless one is asked for.

    Args:
        spec: the base.
        adapter: a folder or a name in the store, see `lorakit.run.named`; None for the base alone.
        data: what was asked for of templates.
        store: where names are looked up; the user's own by default.
        force: use the adapter although it was trained on another base.
        progress: told of a download of the built-in model.

    Raises:
        AdapterError, BaseMismatchError: see `lorakit.adapters.load_adapter`.
        StoreError: there is no such name.
    """
    if adapter is None:
        return open_base(spec, data, progress=progress)
    found = find_adapter(adapter, store)
    known = read_adapter(found.folder)
    session = open_base(spec, data, progress=progress)
    if not force:
        check_base(found.folder, read_record(found.folder), session.identity, name=found.name)
    info = load_adapter(session.model, found.folder, identity=session.identity, force=force)
    template = recorded_template(known, data) or session.template
    return replace(session, template=template, adapter=info)


def recorded_template(info: AdapterInfo, data: DataSpec | None) -> Template | None:
    """The template that an adapter was trained with; None where another is asked for.

    It is what lorakit recorded, or else the chat template that another trainer saved in the
    adapter's folder. Variables and a system text of `data` go over those that were recorded.

    Raises:
        AdapterError: what was recorded is damaged.
    """
    if data is not None and data.template != "auto":
        return None
    recorded = info.provenance.get("template") if info.provenance else None
    try:
        if recorded:
            template = Template.from_dict(recorded)
        elif saved := saved_chat_template(info.folder):
            template = chat_template(saved)
        else:
            return None
    except ConfigError as error:
        raise AdapterError(f"{info.folder}: its recorded template is damaged: {error}") from None
    if data is None:
        return template
    return template.changed(data.system, data.template_options)
