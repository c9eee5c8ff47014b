"""A stand-in for the Hugging Face hub: the part of its HTTP interface that its client needs here.

Repositories lie in memory. `*.safetensors` go the way of large files (git LFS), the rest are
blobs in the commit, as on the hub.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=lambda: [hashlib.sha1(b"start").hexdigest()])

    @property
    def sha(self) -> str:
        return self.commits[-1]


@dataclass
class Hub:
    """What the tests look at: `served` has what is handed out, `asked` every path asked for."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    spoil: str | None = None  # a file that is changed on the way to whoever fetches it


def is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def listing(name: str, content: bytes) -> dict[str, Any]:
    head = b"blob %d\0" % len(content)
    entry: dict[str, Any] = {
        "rfilename": name,
        "size": len(content),
        "blobId": hashlib.sha1(head + content).hexdigest(),
    }
    if is_large(name):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
    return entry


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = self._parts()
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            if (held := self._visible(name)) is None:
                return
            files = [listing(n, c) for n, c in sorted(held.files.items())]
            self._json({"id": name, "sha": held.sha, "private": held.private, "siblings": files})
        elif len(parts) == 5 and parts[2] == "resolve":
            if (held := self._visible("/".join(parts[:2]))) is None:
                return
            content = held.files[parts[4]]
            listed = listing(parts[4], content)
            if parts[4] == self.hub.spoil:
                content = bytes([content[0] ^ 1]) + content[1:]
            tag = listed["lfs"]["sha256"] if is_large(parts[4]) else listed["blobId"]
            self._send(content, {"ETag": f'"{tag}"', "X-Repo-Commit": held.sha})
        else:
            self._error(404, "EntryNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.hub.uploads[self._parts()[1]] = self._body()
        self._send(b"", {"ETag": '"uploaded"'})

    def do_POST(self) -> None:
        parts, body = self._parts(), self._body()
        if parts[-1] in ("validate-yaml", "verify"):
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._error(401, "")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            # What is not said is public, as on the hub; clients before 2.0 say it by a truth value.
            private = asked.get("visibility") == "private" or asked.get("private") is True
            self.hub.repositories[name] = Repository(private)
            return self._json({"url": f"{self.hub.address}/{name}"})
        if "preupload" in parts:
            files = json.loads(body)["files"]
            modes = [("lfs" if is_large(f["path"]) else "regular") for f in files]
            told = [
                {"path": f["path"], "uploadMode": mode, "shouldIgnore": False}
                for f, mode in zip(files, modes, strict=True)
            ]
            return self._json({"files": told})
        if parts[-2:] == ["objects", "batch"]:
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.hub.address}/upload/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if parts[-2] == "commit":
            return self._commit("/".join(parts[2:4]), body)
        return self._error(404, "")

    def _commit(self, name: str, body: bytes) -> None:
        held = self.hub.repositories[name]
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                held.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.hub.uploads[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                held.files[value["path"]] = content
        held.commits.append(hashlib.sha1(body).hexdigest())
        address = f"{self.hub.address}/{name}/commit/{held.sha}"
        self._json({"success": True, "commitUrl": address, "commitOid": held.sha})

    def _visible(self, name: str) -> Repository | None:
        held = self.hub.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if held is None or (held.private and not known):
            self._error(404, "RepoNotFound")
            return None
        return held

    def _parts(self) -> list[str]:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(path)
        return path.strip("/").split("/")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, content: Any) -> None:
        self._send(json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str) -> None:
        self._send(b"", {"X-Error-Code": code, "X-Error-Message": code}, status)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
