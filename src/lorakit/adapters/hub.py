"""Adapters on the Hugging Face hub: pushed privately, pulled with every byte checked.

Only the files named in `FILES` travel, in either direction. A repository may hold anything else,
pickles and code included: none of it is fetched. The record of the rows that an adapter was trained
on goes to private repositories alone: whoever has a row can ask whether it is one of them.
"""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.adapters.folder import TENSORS
from lorakit.adapters.pairs import read_stored
from lorakit.adapters.peft_config import CONFIG
from lorakit.adapters.provenance import RECORD
from lorakit.adapters.trained_rows import TRAINED_ROWS
from lorakit.errors import AdapterError, InputError, OutputError
from lorakit.files.whole import write_folder
from lorakit.models.quiet import quiet

FILES = (CONFIG, TENSORS, RECORD, "README.md", TRAINED_ROWS)
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Push:
    """What is about to be uploaded.

    Attributes:
        folder: the adapter.
        repository: OWNER/NAME.
        private: whether only its owner will see it.
        sizes: bytes of each file, by name.
        over: the commit that it replaces the files of; None where the repository is new.
    """

    folder: Path
    repository: str
    private: bool
    sizes: Mapping[str, int]
    over: str | None


@dataclass(frozen=True)
class Pulled:
    """What was fetched: where it is, from which commit, and what was left there."""

    folder: Path
    commit: str
    left: tuple[str, ...]


def prepare_push(
    folder: Path,
    repository: str,
    *,
    private: bool = True,
    force: bool = False,
    endpoint: str | None = None,
) -> Push:
    """Check the adapter and its place, and upload nothing yet.

    Args:
        folder: the adapter; read whole and checked first.
        repository: OWNER/NAME.
        private: whether only its owner shall see it.
        force: put it over the files that the repository holds.
        endpoint: of the hub; None is the hub client's own (HF_ENDPOINT).

    Raises:
        AdapterError: the folder is no whole adapter.
        OutputError: the repository holds files, is public though it should be private, or the hub
            does not let us look.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    _check_name(repository)
    read_stored(folder)
    with _said(repository, OutputError):
        try:
            there = _api(endpoint).model_info(repository)
        except RepositoryNotFoundError:
            return Push(folder, repository, private, _sizes(folder, private), None)
    held = [s.rfilename for s in there.siblings or [] if s.rfilename != ".gitattributes"]
    if held and not force:
        raise OutputError(
            f"{repository} holds {len(held)} files already ({', '.join(sorted(held)[:4])}): push "
            "to another name, or --force a new version over them; the old one stays in its history"
        )
    if private and not there.private:
        raise OutputError(
            f"{repository} is public, and so would be this adapter: --public if that is meant"
        )
    seen_by_one = bool(there.private)
    return Push(folder, repository, seen_by_one, _sizes(folder, seen_by_one), there.sha)


def _sizes(folder: Path, private: bool) -> dict[str, int]:
    """Bytes of each file that is uploaded."""
    names = [name for name in FILES if private or name != TRAINED_ROWS]
    return {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}


def push(prepared: Push, *, message: str | None = None, endpoint: str | None = None) -> str:
    """Upload in one commit, all files or none.

    Returns:
        The address of the commit.

    Raises:
        OutputError: the hub refused it; a repository that was made for it stays, empty.
    """
    from huggingface_hub import CommitOperationAdd

    api = _api(endpoint)
    with _said(prepared.repository, OutputError), quiet():
        if prepared.over is None:
            api.create_repo(prepared.repository, private=prepared.private)
        commit = api.create_commit(
            prepared.repository,
            operations=[
                CommitOperationAdd(name, str(prepared.folder / name)) for name in prepared.sizes
            ],
            commit_message=message or f"LoRA adapter {prepared.folder.name}",
            parent_commit=prepared.over,
        )
    return str(commit.commit_url)


def pull(
    repository: str, folder: Path, *, revision: str | None = None, endpoint: str | None = None
) -> Pulled:
    """Fetch an adapter into a folder that appears whole and checked, or not at all.

    Three things are checked: each file against the hash that the hub lists for it (SHA-256 of
    large files, git's of small ones), the tensors against lorakit.json where there is one, and the
    adapter as a whole. The revision is resolved to one commit before anything is fetched.

    Args:
        repository: OWNER/NAME.
        folder: missing or empty.
        revision: a branch, a tag or a commit.
        endpoint: of the hub; None is the hub client's own (HF_ENDPOINT).

    Raises:
        AdapterError: there is no such adapter, its files are broken or not what the hub lists.
        OutputError: the folder holds something, or cannot be written.
    """
    _check_name(repository)
    api = _api(endpoint)
    with _said(repository, AdapterError):
        there = api.model_info(repository, revision=revision, files_metadata=True)
    listed = {sibling.rfilename: sibling for sibling in there.siblings or []}
    for name in (CONFIG, TENSORS):
        if name not in listed:
            pickled = [n for n in listed if n.endswith((".bin", ".pt", ".pth"))]
            hint = f"; {pickled[0]} is a pickle, which is not fetched" if pickled else ""
            raise AdapterError(f"{repository} is no adapter: it has no {name}{hint}")
    wanted = [name for name in FILES if name in listed]

    def fill(partial: Path) -> None:
        # Beside the folder: the client's own cache is not to be filled with what is moved.
        with tempfile.TemporaryDirectory(dir=partial.parent) as place:
            for name in wanted:
                with _said(repository, AdapterError), quiet():
                    got = api.hf_hub_download(repository, name, revision=there.sha, cache_dir=place)
                _check_hash(repository, Path(got), listed[name])
                shutil.copyfile(got, partial / name)
        try:
            read_stored(partial)
        except AdapterError as error:
            said = str(error).replace(str(partial), repository)
            raise AdapterError(f"{said}; nothing was kept") from error

    write_folder(folder, fill, what="adapter")
    left = tuple(sorted(n for n in listed if n not in FILES and n != ".gitattributes"))
    return Pulled(folder, str(there.sha), left)


def _check_name(repository: str) -> None:
    if not _NAME.fullmatch(repository):
        raise OutputError(f"{repository!r} is no name on the hub: it must be OWNER/NAME")


def _api(endpoint: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint)


def _check_hash(repository: str, file: Path, listed: Any) -> None:
    """The bytes against what the hub lists: SHA-256 of an LFS file, git's SHA-1 of a blob."""
    content = file.read_bytes()
    if listed.lfs is not None:
        same = hashlib.sha256(content).hexdigest() == listed.lfs.sha256
    else:
        head = b"blob %d\0" % len(content)
        digest = hashlib.sha1(head + content, usedforsecurity=False).hexdigest()
        same = digest == listed.blob_id
    if not same:
        raise AdapterError(
            f"{repository}: {listed.rfilename} is not the file that the hub lists (its hash "
            "differs): it was changed on the way; nothing was kept"
        )


@contextmanager
def _said(repository: str, kind: type[InputError]) -> Iterator[None]:
    """The hub client's errors as one message."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise kind(f"{repository} asks for consent: accept it on its page first") from error
    except RevisionNotFoundError as error:
        raise kind(f"{repository} has no such revision") from error
    except RepositoryNotFoundError as error:
        raise kind(
            f"there is no {repository} on the hub, or it is private: `hf auth login` shows what "
            "is yours"
        ) from error
    except HFValidationError as error:
        raise kind(f"{repository!r} is no name on the hub: {error}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = (
            ": log in first (hf auth login), with a token that may write"
            if status in (401, 403)
            else ""
        )
        raise kind(f"the hub answered {status} for {repository}{hint} ({error})") from error
    except Exception as error:  # the network: each version of the hub's client has its own kinds
        raise kind(
            f"the hub cannot be reached for {repository} ({type(error).__name__}: {error})"
        ) from error
