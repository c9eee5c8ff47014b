"""What an adapter recorded of how it is asked, as the defaults of every command that takes one.

    provenance["asking"]   base model (a folder by its full path), revision, mapping of rows
    provenance["template"] chat template with its system text and variables (`recorded_template`)

and provenance["base_dtype"], for commands that run the base: in which packing the adapter was trained beside it.

An option that the user gave always wins. The number format and the device are never replayed: they
belong to the machine. Nor is trust_remote_code: an adapter that came from elsewhere runs no code.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorakit.adapters import AdapterInfo, read_adapter
from lorakit.adapters.asking import MAPPING, asking_in, mapping_in
from lorakit.config import RunConfig
from lorakit.data import PromptForm
from lorakit.errors import AdapterError, ColumnError
from lorakit.models import default
from lorakit.models.sources import find
from lorakit.models.spec import FORMATS, ModelSpec
from lorakit.run.named import Found, find_adapter

_BUILT_IN = ("smollm2-135m", "huggingfacetb/smollm2-135m-instruct")

Asked = str | Path | Found
"""An adapter as a command takes it: a folder, a name in the store, or one that was looked up."""


def with_recorded(
    config: RunConfig,
    adapters: Asked | Sequence[Asked] | None,
    *,
    base: bool = True,
    packing: bool = False,
) -> RunConfig:
    """The configuration with what adapters recorded in place of what the user did not give.

    Filled in are the base with its revision and the mapping of rows (prompt and completion, or
    text). The template, its system text and its variables follow the adapter by
    `lorakit.run.session.recorded_template`; the options for them are left as the user gave them.

    Args:
        config: as the user gave it; `config.given` holds the names of what was given.
        adapters: one or several: the first that records something says what it is. None: the
            configuration as it is.
        base: whether the command opens the base. Without it one that is not here is no error.
        packing: whether the command runs the base, so that it is held in as few bits as it was then.

    Raises:
        AdapterError: an adapter cannot be read, or its base is not here and none was given.
        StoreError: there is no such name.
    """
    several = [adapters] if isinstance(adapters, str | Path | Found) else list(adapters or ())
    model, mapping = "model" in config.given, not config.given.isdisjoint(MAPPING)
    held = not packing or "base_dtype" in config.given
    for adapter in several:
        if model and mapping and held:
            break
        found = find_adapter(adapter, config.output.store)
        info = read_adapter(found.folder)
        recorded = recorded_mapping(info)
        if not mapping and recorded:
            config, mapping = replace(config, data=replace(config.data, **recorded)), True
        if not model and (own := recorded_base(config.model, found.name, info, base=base)):
            config, model = replace(config, model=own), True
        if not held and (kept := recorded_packing(info)):
            config = replace(config, model=replace(config.model, base_dtype=kept))
            held = True
    return config


@contextmanager
def reading_rows(given: RunConfig, used: RunConfig, adapter: Asked | None) -> Iterator[None]:
    """Say of a column that rows have not that an adapter's record asked for it.

    Args:
        given: the configuration before `with_recorded`.
        used: the one after it.
        adapter: whose record it was.

    Raises:
        ColumnError: as inside, with what to do about it.
    """
    try:
        yield
    except ColumnError as error:
        if given.data == used.data:
            raise
        name = adapter.name if isinstance(adapter, Found) else adapter
        end = "" if str(error).endswith("?") else "."
        raise ColumnError(
            f"{error}{end} This mapping is the one that {name} was trained with: say how these rows are "
            "read with --prompt and --completion"
        ) from None


def recorded_mapping(info: AdapterInfo) -> dict[str, Any]:
    """How an adapter's rows were mapped, by option; empty where their columns were recognised."""
    return mapping_in(info.provenance)


def recorded_packing(info: AdapterInfo) -> str | None:
    """The `base_dtype` of the base that an adapter was trained beside; None in full precision.

    Packings that only files have (GPTQ's, a .gguf file's) are the files' own: None too.
    """
    held = (info.provenance or {}).get("base_dtype")
    return held if held in FORMATS else None


def prompt_form(info: AdapterInfo | None) -> PromptForm:
    """How an adapter's prompts are made of what is asked; None stands for the base."""
    return PromptForm(recorded_mapping(info).get("prompt") if info else None)


def recorded_base(
    given: ModelSpec, name: str, info: AdapterInfo, *, base: bool = True
) -> ModelSpec | None:
    """The base that an adapter records, where it is here; None where nothing is recorded.

    Args:
        given: what else was asked for: device, number format.
        name: what to call the adapter.
        info: what it says of itself.
        base: whether it is an error that the base is not here.

    Raises:
        AdapterError: it is not here.
    """
    asking, record = asking_in(info.provenance), info.base or {}
    revision = record.get("revision") or asking.get("revision") or None
    if isinstance(revision, str) and revision.startswith("sha256:"):
        revision = None
    names = [asking.get("model"), record.get("name"), info.base_name]
    named = [str(one) for one in dict.fromkeys(names) if one]
    for text in named:
        spec = _here(given, text, revision)
        if spec is not None:
            return spec
    if not named:
        return None
    # A run that took its base from the hub recorded the commit: it may be fetched again.
    if record and revision is not None:
        return replace(given, model=named[0], revision=given.revision or revision)
    if not base:
        return None
    raise AdapterError(
        f"{name} was trained on the base {named[0]!r}, which is not here: give the base with --model "
        f"(in Python model), a folder or a hub id"
    )


def _here(given: ModelSpec, name: str, revision: str | None) -> ModelSpec | None:
    """A base by a recorded name, where its files are on this machine."""
    if name.lower() == default.NAME:
        return replace(given, model=default.NAME)
    path = Path(name).expanduser()
    if path.exists():
        # The base is meant, also where an adapter lies beside its files.
        return replace(given, model=name, ignore_adapter=True)
    spec = replace(given, model=name, revision=given.revision or revision)
    if find(spec) is not None:
        return spec
    # The built-in model by the name that it has on the hub.
    return replace(given, model=default.NAME) if name.lower() in _BUILT_IN else None
