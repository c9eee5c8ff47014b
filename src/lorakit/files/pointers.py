"""A file that stands in the place of another: a pointer of git-lfs or git-annex, a saved web page.

Clones without the large files, and downloads that asked for the wrong address, leave files with the
right name and the wrong content. Each is known by its first bytes:

- git-lfs: "version https://git-lfs.github.com/spec/v1", then "oid sha256:…" and "size …", below
  1024 bytes (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md);
- git-annex: "/annex/objects/KEY" for an unlocked file, a symbolic link into ".git/annex/objects" for
  a locked one (https://git-annex.branchable.com/internals/pointer_file/);
- a web page, or the words of a server that did not find the file.
"""

import re
from pathlib import Path

from lorakit.files.wording import size

_HEAD_BYTES = 1024
# The first version of the specification was published under another name.
_LFS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_LFS_SIZE = re.compile(rb"^size (\d+)\s*$", re.MULTILINE)
_PAGE = (b"<!doctype html", b"<html", b"<head")
# What the Hugging Face hub, GitHub's raw files and S3-like stores answer where a file is not found
# or not allowed. `wget` and `curl` without --fail save it under the name of the file.
_REFUSALS = (
    b"Entry not found",
    b"Repository not found",
    b"Invalid username or password.",
    b"Access to dataset",
    b"Access to model",
    b"404: Not Found",
    b"404 page not found",
)


def pointer_problem(path: Path) -> str | None:
    """What stands in the place of the file, and what to do; None for the file itself.

    A clause to put after the file's name: "is a Git LFS pointer, …". None also where the file cannot
    be read, which its reader says better.
    """
    if path.is_symlink() and not path.exists():
        return _broken_link(path)
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return None
    return pointer_in(head, path.name)


def pointer_in(head: bytes, name: str = "FILE") -> str | None:
    """The same, of the first bytes of a file that is called `name`.

    >>> pointer_in(b"version https://git-lfs.github.com/spec/v1\\noid sha256:0\\nsize 9000000\\n", "x.bin")
    'is a Git LFS pointer, not the file of 9.0 MB itself: run `git lfs install` and `git lfs pull` in the clone, or download x.bin again'
    >>> pointer_in(b'{"prompt": "a"}') is None
    True
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(_LFS):
        stated = _LFS_SIZE.search(text)
        of = f"file of {size(int(stated[1]))}" if stated else "file"
        return (
            f"is a Git LFS pointer, not the {of} itself: run `git lfs install` and `git lfs pull` in "
            f"the clone, or download {name} again"
        )
    if text.startswith(b"/annex/objects/"):
        return _annex(name)
    if text[:16].lower().startswith(_PAGE):
        return (
            f"is a web page (HTML) that was saved in place of the file: download {name} by the "
            "address of the file itself (on Hugging Face with /resolve/ in place of /blob/, on GitHub "
            "with the 'Raw' button)"
        )
    if text.startswith(b"<?xml") and b"<Error>" in text and b"<Code>" in text:
        return f"is a server's error message (XML), not the file: download {name} again"
    if text.startswith(_REFUSALS) and text.count(b"\n") <= 1:
        said = text.splitlines()[0][:60].decode("utf-8", "replace")
        return (
            f"is the answer of a server that did not give the file ({said!r}): check the address and "
            f"whether the file needs a login, and download {name} again"
        )
    return None


def _annex(name: str) -> str:
    return (
        f"is a pointer of git-annex, not the file itself: run `git annex get {name}` in the clone "
        "(DataLad: `datalad get`)"
    )


def _broken_link(path: Path) -> str:
    target = str(path.readlink())
    if "annex/objects/" in target.replace("\\", "/"):
        return _annex(path.name)
    return f"is a symbolic link to {target}, which is not there: download or copy the file again"
