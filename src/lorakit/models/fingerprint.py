"""Which base model this is, by content: weights, tokenizer, chat template.

An adapter belongs to one base. Three SHA-256 say which:

weights    over the tensors sorted by name, of each: name, dtype, shape and bytes (see `_tensor`). How
           they are split over files does not matter, nor whether a GGUF file's blocks were kept.
tokenizer  over tokenizer.json as canonical JSON, without its padding and truncation (settings of
           a call, not of the tokenizer), or over sentencepiece's model where that is all there is.
template   over the text of the chat template; of nothing where there is none.

`identify` hashes files and remembers the result in the cache, by every file's path, size and time
of change. `identify_loaded` gives a model from `load_model` the identity of its files, which
is the same whatever dtype it was loaded in; only a model from elsewhere is hashed in memory. That
hash equals the files' hash of `save_pretrained` in the same dtype.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.errors import ModelError, did_you_mean
from lorakit.files.cache import cache_dir
from lorakit.files.header import StoredTensor
from lorakit.files.whole import write_text
from lorakit.models import files, gguf_packed
from lorakit.models.load import folder_of, source_of
from lorakit.models.sources import resolve
from lorakit.models.spec import ModelSpec, as_spec

if TYPE_CHECKING:
    from torch import Tensor

    from lorakit.models.gguf_packed import Unpacked

_VERSION = 1


@dataclass(frozen=True)
class BaseIdentity:
    """A base model, by name for people and by content for machines.

    `revision` is the commit of a hub id, None where there is none; hashes are SHA-256 in hex.
    """

    name: str
    revision: str | None
    weights_sha256: str
    tokenizer_sha256: str
    template_sha256: str

    def to_dict(self) -> dict[str, str | None]:
        """The fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "BaseIdentity":
        """The inverse of `to_dict`.

        Raises:
            ModelError: a key is unknown, missing or of another type.
        """
        known = [f.name for f in fields(cls)]
        for key in raw:
            if key not in known:
                raise ModelError(f"base identity: unknown key {key!r}: {did_you_mean(key, known)}")
        for key in known:
            value = raw.get(key)
            if not isinstance(value, str) and not (key == "revision" and value is None):
                raise ModelError(f"base identity: {key!r} is missing or not a text")
        return cls(**raw)

    def differences(self, other: "BaseIdentity") -> tuple[str, ...]:
        """Which of "weights", "tokenizer", "template" differ; names and revisions do not count."""
        parts = ("weights", "tokenizer", "template")
        return tuple(
            p for p in parts if getattr(self, f"{p}_sha256") != getattr(other, f"{p}_sha256")
        )


def identify(model: str | ModelSpec = "smollm2-135m", **options: Any) -> BaseIdentity:
    """The identity of a model's files, hashed the first time and remembered for later.

    Raises:
        ModelError: as `load_model`.
    """
    where = resolve(as_spec(model, options))
    involved = [*files.weight_files(where.folder), *_tokenizer_files(where.folder)]
    memory = cache_dir() / "fingerprints" / f"{_key(involved)}.json"
    hashes = _remembered(memory)
    if hashes is None:
        hashes = {
            "weights_sha256": hash_files(
                files.weight_files(where.folder), gguf_packed.unpacked(where.folder)
            ),
            "tokenizer_sha256": _hash_tokenizer_files(where.folder),
            "template_sha256": _sha256(_template_text(where.folder)),
        }
        write_text(memory, json.dumps(hashes))
    return BaseIdentity(where.name, where.revision, **hashes)


def files_of(model: Any) -> str | None:
    """Which files a model from `load_model` has, by path, size and time of change; None for another.

    Unlike a hash of the weights it costs nothing, and what is remembered of a fingerprint goes by it.
    """
    folder = folder_of(model)
    if folder is None:
        return None
    try:
        involved = [*files.weight_files(folder), *_tokenizer_files(folder), folder / "config.json"]
        return _key([*involved, *sorted(folder.glob("*.py"))])
    except (OSError, ModelError):
        return None


def identify_settings(
    model: str | ModelSpec = "smollm2-135m", *, weights_sha256: str = "", **options: Any
) -> BaseIdentity:
    """The identity of a base whose weights are not here: its tokenizer and template are hashed.

    Args:
        model: its name; of a hub id no weights are fetched.
        weights_sha256: what to take for the weights' hash.
        **options: as for `load_model`.

    Raises:
        ModelError: as `load_model`, but weights need not be there.
    """
    where = resolve(as_spec(model, options), weights=False)
    tokenizer = _hash_tokenizer_files(where.folder)
    template = _sha256(_template_text(where.folder))
    return BaseIdentity(where.name, where.revision, weights_sha256, tokenizer, template)


def identify_loaded(
    model: Any,
    tokenizer: Any,
    *,
    tensors: "Mapping[str, Tensor] | None" = None,
    name: str | None = None,
    revision: str | None = None,
) -> BaseIdentity:
    """The identity of a model in memory.

    Args:
        model: the model. If it is from `load_model` and no tensors are given, its files' identity is
            returned: the base under an adapter is frozen and still what was loaded.
        tokenizer: its tokenizer.
        tensors: the base's tensors by the names they have in a model folder, for a model whose
            layers are wrapped by adapters; default ``model.state_dict()``. Of tied tensors the
            first counts.
        name: what to call it (default: the folder it was loaded from, or its class).
        revision: its commit, if it has one.
    """
    spec = source_of(model)
    if spec is not None and tensors is None:
        return identify(spec)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return BaseIdentity(
        name or Path(model.config.name_or_path).name or type(model).__name__,
        revision,
        hash_tensors(model.state_dict() if tensors is None else tensors),
        _hash_tokenizer_json(backend),
        _sha256(_one_template(tokenizer.chat_template)),
    )


def hash_files(paths: Iterable[Path], other: "Mapping[str, Unpacked] | None" = None) -> str:
    """The weights' hash, from safetensors files; only one chunk is in memory at a time.

    Args:
        paths: the files.
        other: what counts in the place of tensors of these names.

    Raises:
        ModelError: a file is broken, or a tensor is in two files.
    """
    from lorakit.files.shards import raw

    places: dict[str, StoredTensor] = {}
    for path in paths:
        for name, entry in files.read_entries(path).items():
            if name in places:
                raise ModelError(f"tensor {name} is in {places[name].file} and in {path}")
            places[name] = StoredTensor(path, name, entry)
    digest = hashlib.sha256()
    for name in sorted(places):
        entry = places[name].entry
        own = entry.dtype, entry.shape, raw(places[name])
        dtype, shape, chunks = (other or {}).get(name) or own
        digest.update(_tensor(name, dtype, shape))
        for chunk in chunks:
            digest.update(chunk)
    return digest.hexdigest()


def hash_tensors(tensors: "Mapping[str, Tensor]") -> str:
    """The weights' hash, from tensors in memory; equals `hash_files` of their safetensors."""
    import torch

    from lorakit.files.tensors import CODES

    digest = hashlib.sha256()
    seen: set[tuple[Any, ...]] = set()
    untied: dict[str, Any] = {}
    for (
        name,
        tensor,
    ) in tensors.items():  # in module order: of tied tensors the first is the saved one
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        untied[name] = tensor.detach()
    for name in sorted(untied):
        tensor = untied[name]
        digest.update(
            _tensor(name, CODES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
        )
        plain = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(memoryview(plain.numpy()))
    return digest.hexdigest()


def _tensor(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """A tensor's line before its bytes: unambiguous, so that no two models share a stream."""
    return (json.dumps([name, dtype, list(shape)]) + "\n").encode()


def _key(paths: Iterable[Path]) -> str:
    lines = [f"version {_VERSION}"]
    for path in paths:
        stat = path.stat()
        lines.append(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _remembered(path: Path) -> dict[str, str] | None:
    """What an earlier command hashed, unless the note is damaged: then it is hashed again."""
    try:
        hashes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    names = {"weights_sha256", "tokenizer_sha256", "template_sha256"}
    whole = isinstance(hashes, dict) and set(hashes) == names
    return hashes if whole and all(isinstance(v, str) for v in hashes.values()) else None


def _tokenizer_files(folder: Path) -> list[Path]:
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")
    return [folder / name for name in names if (folder / name).is_file()]


def _hash_tokenizer_files(folder: Path) -> str:
    files.require_tokenizer(folder)
    path = folder / "tokenizer.json"
    if path.is_file():
        return _hash_tokenizer_json(files.read_json(path))
    others = sorted(
        p for pattern in ("*.model", "vocab.*", "merges.txt") for p in folder.glob(pattern)
    )
    if not others:
        raise ModelError(f"{folder} has no tokenizer: tokenizer.json is not there")
    digest = hashlib.sha256()
    for other in others:
        digest.update(other.name.encode() + b"\0" + other.read_bytes())
    return digest.hexdigest()


def _hash_tokenizer_json(raw: dict[str, Any]) -> str:
    content = {key: value for key, value in raw.items() if key not in ("padding", "truncation")}
    return _sha256(json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")))


def _template_text(folder: Path) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return ""
    return _one_template(files.read_json(config).get("chat_template"))


def _one_template(template: Any) -> str:
    """A template's text; several named ones as canonical JSON."""
    if template is None or isinstance(template, str):
        return template or ""
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    return json.dumps(template, sort_keys=True, ensure_ascii=False)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
