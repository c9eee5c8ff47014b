"""API keys: created here, stored as hashes, compared in constant time, with limits a minute.

The file is JSON: {"keys": [{"name": …, "sha256": …, "adapters": ["*"], …}]}. A key is 256 random
bits, so one SHA-256 is as good as a slow hash: there is nothing to guess.
"""

import fnmatch
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lorakit.errors import ConfigError, did_you_mean
from lorakit.files.whole import write_file

_PREFIX = "lk-"


@dataclass(frozen=True)
class Key:
    """Who may ask for what.

    Attributes:
        name: for people, and for the log.
        sha256: of the key, in hex.
        adapters: names, with * for any characters; the base's name counts like any other.
        requests_per_minute, tokens_per_minute: None for no limit.
        admin: may register and remove adapters, where the server allows it at all.
    """

    name: str
    sha256: str
    adapters: tuple[str, ...] = ("*",)
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    admin: bool = False

    def may_use(self, model: str) -> bool:
        """Whether the key may ask for a model of this name, whatever its version."""
        bare = model.partition("@")[0]
        return any(fnmatch.fnmatchcase(bare, pattern) for pattern in self.adapters)


class Bucket:
    """So much a minute: what was not used is there for later, up to a minute's worth.

    Args:
        per_minute: how much.
        now: seconds, by the clock of `wait`.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self.most, self.level, self.at = per_minute, per_minute, now

    def wait(self, now: float) -> float:
        """Seconds until there is something in it; 0 where there is."""
        self.level = min(self.most, self.level + (now - self.at) * self.most / 60)
        self.at = now
        return 0.0 if self.level > 0 else (1 - self.level) * 60 / self.most

    def take(self, amount: float) -> None:
        """Take something out; the level may fall below nothing, and then others wait longer."""
        self.level -= amount


class KeyRing:
    """The keys of a file, and what each has left.

    Args:
        keys: read from the file.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = tuple(keys)
        self._requests: dict[str, Bucket] = {}
        self._tokens: dict[str, Bucket] = {}

    def find(self, presented: str) -> Key | None:
        """The key that a client presents; every known one is compared, each in constant time."""
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).hexdigest()
        match = None
        for key in self.keys:
            if hmac.compare_digest(digest, key.sha256):
                match = key
        return match

    def admit(self, key: Key, now: float) -> float:
        """Count one request; seconds to wait instead where the key has used its rate up."""
        waits = [0.0]
        for per_minute, buckets in (
            (key.requests_per_minute, self._requests),
            (key.tokens_per_minute, self._tokens),
        ):
            if per_minute is not None:
                bucket = buckets.setdefault(key.name, Bucket(per_minute, now))
                waits.append(bucket.wait(now))
        if max(waits) == 0 and key.name in self._requests:
            self._requests[key.name].take(1)
        return max(waits)

    def spend(self, key: Key, tokens: int) -> None:
        """Count the tokens of a request that has ended."""
        if key.name in self._tokens:
            self._tokens[key.name].take(tokens)


def read_keys(path: str | Path) -> KeyRing:
    """The keys of a file.

    Raises:
        ConfigError: it is not there, holds no key, or one that cannot be; others may write it.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ConfigError(
            f"there is no key file {path}: lorakit serve --new-key NAME --keys {path} makes one"
        ) from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from None
    if os.name == "posix" and mode & 0o022:
        raise ConfigError(f"{path} can be written by others: chmod 600 {path}")
    raw = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(raw, list) or not raw:
        raise ConfigError(f"{path} holds no keys: it must be {{'keys': [...]}}")
    keys = [_key(one, f"{path}: key {number}") for number, one in enumerate(raw, start=1)]
    names = [key.name for key in keys]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two keys have one name")
    return KeyRing(keys)


def add_key(path: str | Path, name: str, **limits: Any) -> str:
    """Create a key, add its hash to a file, and return the key, which is stored nowhere.

    Args:
        path: the file, created where it does not exist; only its owner may read it then.
        name: of the key; no other may have it.
        **limits: the other fields of `Key`.

    Raises:
        ConfigError: the file cannot be read, or the name is taken.
    """
    path = Path(path)
    known = list(read_keys(path).keys) if path.exists() else []
    if not name or name in [key.name for key in known]:
        raise ConfigError(f"{path} has a key called {name!r} already" if name else "name the key")
    secret = _PREFIX + secrets.token_urlsafe(32)
    key = Key(name, hashlib.sha256(secret.encode()).hexdigest(), **limits)
    content = json.dumps({"keys": [asdict(one) for one in (*known, key)]}, indent=2)

    def fill(partial: Path) -> None:
        partial.touch(mode=0o600)  # before it holds anything
        partial.write_text(content, encoding="utf-8")

    write_file(path, fill, what="key file", overwrite=True)
    return secret


def _key(raw: Any, where: str) -> Key:
    known = [f.name for f in fields(Key)]
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} is no object")
    for name in raw:
        if name not in known:
            raise ConfigError(f"{where}: unknown {name!r}; {did_you_mean(name, known)}")
    values = {**raw, "adapters": tuple(raw.get("adapters", ("*",)))}
    digest, name = values.get("sha256"), values.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where} has no name")
    if not isinstance(digest, str) or len(digest) != 64:
        raise ConfigError(f"{where} ({name}) has no sha256 of 64 hexadecimal digits")
    for limit in ("requests_per_minute", "tokens_per_minute"):
        rate = values.get(limit)
        if rate is not None and (not isinstance(rate, int | float) or rate <= 0):
            raise ConfigError(f"{where} ({name}): {limit} must be a number above 0")
    return Key(**values)
