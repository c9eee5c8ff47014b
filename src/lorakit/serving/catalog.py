"""Which models there are, by the names that clients ask for: the base, and adapters on it.

An adapter comes from the store, whose names are looked up at each request so that what another
process adds, rolls back or removes counts from the next request on; or from a folder that the
operator named, or that a client registered where that is allowed. Whatever it is called, it is used
by its content id: a new version under an old name shares nothing with the old one.

Longer than 300 lines: what a name means depends on folders, store, holder and keys at once, and the
lock around them is one.
"""

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from lorakit.adapters.asking import mapping_in
from lorakit.adapters.folder import adapter_folder
from lorakit.adapters.info import AdapterInfo, read_adapter
from lorakit.adapters.measurements import Measurement, headline, read_measurements
from lorakit.adapters.packed_base import packing_note
from lorakit.adapters.pairs import read_stored
from lorakit.adapters.peft_config import CONFIG
from lorakit.adapters.provenance import RECORD, base_note, check_base, read_record
from lorakit.adapters.store import Entry, Store, content_id
from lorakit.adapters.store.contents import KEPT, signature
from lorakit.adapters.store.references import check_name
from lorakit.adapters.store.summary import headline_in, numbers
from lorakit.data import PromptForm, Template
from lorakit.errors import AdapterError, LorakitError, StoreError, did_you_mean
from lorakit.lora.invocation import invocation_start
from lorakit.lora.variant import Capability
from lorakit.models.fingerprint import BaseIdentity
from lorakit.run.recorded import prompt_form
from lorakit.run.session import recorded_template
from lorakit.serving.bank import check_variant

_log = logging.getLogger("lorakit.serving")
_REMEMBERED = 4096
_JSON_BYTES = 8 << 20
_AS_TYPED = PromptForm()


class UnknownModelError(LorakitError):
    """There is no model of this name; the text names the nearest."""


class ForbiddenError(LorakitError):
    """The server does not allow it."""


class Holder(Protocol):
    """Where adapters are held to be computed: the slots of this process, or another program's."""

    @property
    def needs(self) -> Collection[Capability]:
        """What the variant of an adapter has to be capable of."""

    @property
    def largest_file(self) -> int:
        """Bytes of tensors beyond which a file is not even read."""

    def width(self, ranks: Mapping[str, int], name: str) -> int:
        """Slots that an adapter of these ranks by path takes.

        Raises:
            AdapterError: there is no room for it, or it adapts what cannot be adapted here.
        """

    def open(self, folder: Path, key: str) -> Any:
        """Read the adapter in a folder, whose content id is `key`, into the form it is held in.

        Raises:
            AdapterError: it cannot be read, or does not fit.
        """


@dataclass(frozen=True)
class Model:
    """A model that requests can name.

    Attributes:
        name: as in the request.
        key: content id of the adapter, "" for the base.
        template: how prompts are put to it.
        form: how prompts are made of what a client sends.
        load: reads the adapter into the form it is held in; None for the base.
        invocation: tokens from whose last occurrence on the adapter acts; () where it acts on all.
    """

    name: str
    key: str
    template: Template
    load: Callable[[], Any] | None = None
    form: PromptForm = _AS_TYPED
    invocation: tuple[int, ...] = ()

    def on(self, ids: Sequence[int]) -> "Acts":
        """What computes a prompt: where the adapter acts on none of it, the base."""
        if not self.invocation:
            return Acts(self.key, self.load)
        start = invocation_start(ids, self.invocation)
        return Acts("", None) if start is None else Acts(self.key, self.load, start)


@dataclass(frozen=True)
class Acts:
    """Fields of a `Prompt`: whose it is, and how many tokens at its beginning the base computes alone."""

    key: str
    load: Callable[[], Any] | None
    unadapted: int = 0


@dataclass(frozen=True)
class Card:
    """What a list of models says of one.

    `prompt` is how a prompt is made of what a client sends, where the adapter recorded a mapping:
    its "template", the "columns" in it, and the "endpoints" that apply it. `headline` is the score
    that fits its task best: "name", "value", "low", "high", "rows", and all of it as "text".
    """

    name: str
    kind: str
    ranks: tuple[int, int] | None = None
    parameters: int | None = None
    version: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    prompt: dict[str, Any] | None = None
    headline: dict[str, Any] | None = None


class Catalog:
    """The base and its adapters.

    Args:
        base: what the base is called.
        identity: its fingerprint; adapters of another base are refused.
        template: the base's own.
        holder: where adapters are held, which says what one may be.
        store: where names are looked up, or None.
        names: the only references of the store that are served; None for all.
        folders: adapters by name that lie elsewhere.
        force: serve adapters although they were trained on another base.
        held: the base's packing, see `packing_note`.
    """

    def __init__(
        self,
        base: str,
        identity: BaseIdentity,
        template: Template,
        holder: Holder,
        *,
        store: Store | None = None,
        names: Sequence[str] | None = None,
        folders: dict[str, Path] | None = None,
        force: bool = False,
        held: str | None = None,
    ) -> None:
        self.base, self.identity, self.template, self.holder = base, identity, template, holder
        self.store, self.names, self.force = store, names, force
        self.held = held
        self._folders = dict(folders or {})
        self._known: OrderedDict[Any, Model] = OrderedDict()
        self._cards: dict[str, tuple[Any, Card]] = {}
        self._prompts: dict[str, dict[str, Any] | None] = {}
        self._lock = threading.Lock()

    def resolve(self, name: str, visible: Callable[[str], bool] = lambda _: True) -> Model:
        """The model that a client means.

        Args:
            name: as in the request.
            visible: whether the client may know of a model of this name.

        Raises:
            UnknownModelError: there is none of this name.
            AdapterError: it is there, and cannot be served on this base.
        """
        if name == self.base:
            return Model(name, "", self.template)
        folder = self._folders.get(name)
        if folder is not None:
            return self._at(name, folder, signature(folder), None)
        entry = self._stored(name)
        if entry is None:
            every = [self.base, *(e.name for e in self._entries()), *self._folders]
            known = [one for one in every if visible(one)]
            raise UnknownModelError(f"there is no model {name!r}; {did_you_mean(name, known)}")
        return self._at(name, entry.folder, entry.version.id, entry.version.id)

    def list(self) -> list[Card]:
        """The base and every adapter that a request can name without a version, sorted."""
        cards = {self.base: Card(self.base, "base")}
        measured = self.store.measurements() if self.store is not None else {}
        for entry in self._entries():
            summary = entry.version.summary
            cards[entry.name] = Card(
                entry.name,
                "adapter",
                summary.ranks,
                summary.parameters,
                str(entry),
                dict(summary.metrics),
                self._asked(entry),
                _headline(summary.metrics, summary.headline, measured.get(entry.version.id, ())),
            )
        for name, folder in self._folders.items():
            with contextlib.suppress(LorakitError):  # gone, or half written: asking for it says so
                cards[name] = self._card(name, folder)
        first, *rest = cards.values()
        return [first, *sorted(rest, key=lambda card: card.name)]

    def register(self, name: str, path: str, allowed: Sequence[Path]) -> None:
        """Let clients ask for an adapter by a name from now on.

        Args:
            name: as clients will ask for it.
            path: a reference to the store, or a folder inside one of `allowed`.
            allowed: folders of the operator's choice.

        Raises:
            StoreError: the name cannot be one.
            ForbiddenError: the path leads out of the allowed folders, or the name is the base's.
            UnknownModelError: there is no such adapter.
            AdapterError: it cannot be served on this base.
        """
        check_name(name)
        if name == self.base:
            raise ForbiddenError(f"{name!r} is the base")
        folder = self._allowed(path, allowed)
        model = self._at(name, folder, signature(folder), None)
        assert model.load is not None
        read_stored(folder)  # everything that can be wrong with it is said now, and not later
        with self._lock:
            self._folders = {**self._folders, name: folder}

    def unregister(self, name: str) -> None:
        """Forget a name that was registered; running requests of it end as they would have.

        Raises:
            UnknownModelError: no such name was registered.
        """
        with self._lock:
            if name not in self._folders:
                near = did_you_mean(name, self._folders)
                raise UnknownModelError(f"no adapter {name!r} was loaded; {near}")
            self._folders = {n: f for n, f in self._folders.items() if n != name}

    def _allowed(self, path: str, allowed: Sequence[Path]) -> Path:
        if self.store is not None and "/" not in path and "\\" not in path and "\0" not in path:
            try:
                return self.store.checked(path).folder
            except StoreError as error:
                raise UnknownModelError(str(error)) from None
        try:
            real = Path(path).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            real = None
        roots = [root.resolve() for root in allowed]
        # One answer for what is not there and what may not be read: nobody learns of other folders.
        if real is None or not any(real.is_relative_to(root) for root in roots):
            raise ForbiddenError(
                "this path is not an adapter in the store or in a folder that the server allows"
            )
        for name in KEPT:
            file = real / name
            if file.exists() and not any(file.resolve().is_relative_to(r) for r in roots):
                raise ForbiddenError(f"{name} leads out of the folders that the server allows")
        return real

    def _card(self, name: str, folder: Path) -> Card:
        """What a folder says of itself, read again when it has changed."""
        now = signature(folder)
        known = self._cards.get(name)
        if known is None or known[0] != now:
            known = self._cards[name] = now, _card(name, read_adapter(folder))
        return known[1]

    def _asked(self, entry: Entry) -> dict[str, Any] | None:
        """How prompts of a version are made; its record is read once, and only if it has a mapping."""
        version = entry.version
        if version.summary.mapping == {}:
            return None
        if version.id not in self._prompts:
            record = read_record(entry.folder)
            self._prompts[version.id] = _prompt(record.provenance if record else None)
        return self._prompts[version.id]

    def _entries(self) -> Iterable[Entry]:
        if self.store is None:
            return
        for entry in self.store.list():
            theirs = entry.version.summary.base.get("weights_sha256")
            if theirs in (None, self.identity.weights_sha256) and self._named(entry.name):
                yield entry

    def _named(self, name: str) -> bool:
        return self.names is None or name in self.names or name.split("@")[0] in self.names

    def _stored(self, name: str) -> Entry | None:
        if self.store is None or not self._named(name):
            return None
        try:
            return self.store.resolve(name)
        except StoreError:
            return None

    def _at(self, name: str, folder: Path, memory: Any, version: str | None) -> Model:
        """The model at a folder; what was found is remembered by `memory`."""
        with self._lock:
            known = self._known.get(memory)
            if known is not None:
                self._known.move_to_end(memory)
                return replace(known, name=name)
        adapter_folder(folder)
        self._bounded(folder)
        info, record = read_adapter(folder), read_record(folder)
        if not self.force:
            check_base(folder, record, self.identity, name=name)
        for note in filter(
            None,
            (base_note(info.base_name, record, self.identity), packing_note(record, self.held)),
        ):
            _log.warning("%s: %s", name, note)
        check_variant(info.spec.variant, self.holder.needs, name)
        self.holder.width(info.ranks, name)
        key = version or content_id(folder)

        def load() -> Any:
            # A version in the store never changes; files that lie elsewhere may.
            if version is None and signature(folder) != memory:
                raise AdapterError(f"{name} was replaced during the request: send it again")
            return self.holder.open(folder, key)

        template = recorded_template(info, None) or self.template
        acts_from = info.spec.alora if isinstance(info.spec.alora, tuple) else ()
        model = Model(name, key, template, load, prompt_form(info), acts_from)
        with self._lock:
            self._known[memory] = model
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return model

    def _bounded(self, folder: Path) -> None:
        """Refuse files far larger than anything that fits the slots, before any is read."""
        most = self.holder.largest_file
        for name in KEPT:
            file = folder / name
            limit = _JSON_BYTES if name in (CONFIG, RECORD) else most
            if file.is_file() and file.stat().st_size > limit:
                raise AdapterError(
                    f"{file} has {file.stat().st_size:,} bytes; at most {limit:,} are read"
                )


def find_folders(places: Sequence[str | Path]) -> tuple[dict[str, Path], list[str]]:
    """What `--adapters` means: adapter folders by name, and names in the store.

    A folder that is an adapter goes by its own name; another one is searched for adapters, one level
    deep. What is no folder is a name in the store.

    Raises:
        AdapterError: a folder holds no adapter, or two adapters have one name.
        StoreError: a folder's name cannot be an adapter's.
    """
    folders: dict[str, Path] = {}
    names: list[str] = []
    for place in places:
        path = Path(place).expanduser()
        if not path.is_dir():
            if "/" in str(place) or str(place).startswith("."):
                raise AdapterError(f"there is no folder {place}")
            names.append(str(place))
            continue
        own = (path / CONFIG).is_file()
        inside = [path] if own else sorted(p.parent for p in path.glob(f"*/{CONFIG}"))
        if not inside:
            raise AdapterError(f"{place} holds no adapter: no {CONFIG} in it or one level below")
        for folder in inside:
            name = folder.resolve().name
            check_name(name)
            if name in folders:
                raise AdapterError(f"{folder} and {folders[name]} would both be called {name!r}")
            folders[name] = folder.resolve()
    return folders, names


def _card(name: str, info: AdapterInfo) -> Card:
    ranks = (min(info.ranks.values()), max(info.ranks.values()))
    recorded = (info.provenance or {}).get("metrics")
    metrics, prompt = numbers(recorded), _prompt(info.provenance)
    measured = read_measurements(info.folder, content_id(info.folder))
    shown = _headline(metrics, headline_in(recorded), measured)
    return Card(name, "adapter", ranks, info.trainable_parameters, None, metrics, prompt, shown)


def _headline(
    metrics: Mapping[str, float], name: str, measured: Sequence[Measurement]
) -> dict[str, Any] | None:
    """The score that `lorakit adapters list` shows as well."""
    shown = headline(metrics, name, measured)
    return None if shown is None else {**asdict(shown), "text": str(shown)}


def _prompt(provenance: Mapping[str, Any] | None) -> dict[str, Any] | None:
    form = PromptForm(mapping_in(provenance).get("prompt"))
    if not form.columns:
        return None
    endpoints = ["/v1/chat/completions"]
    if ((provenance or {}).get("template") or {}).get("kind") == "raw":
        endpoints.append("/v1/completions")
    return {"template": form.written, "columns": list(form.columns), "endpoints": endpoints}
