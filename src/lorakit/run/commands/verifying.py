"""`lorakit adapters verify`: is the base of a stored adapter here, and still the same?"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from lorakit.adapters.store import Version
from lorakit.errors import ModelError
from lorakit.models import ModelSpec, identify
from lorakit.models.files import weight_files
from lorakit.models.fingerprint import BaseIdentity, hash_files
from lorakit.models.sources import find

_PARTS = {"weights": "weights", "tokenizer": "tokenizer", "template": "chat template"}


@dataclass
class BaseCheck:
    """Compares the bases of versions with what lies on this machine; nothing is fetched.

    Weights are hashed again, each base once.

    Attributes:
        same: names of the bases that were found and are what they were.
        unknown: name -> why it could not be compared.
    """

    same: set[str] = field(default_factory=set)
    unknown: dict[str, str] = field(default_factory=dict)
    _known: dict[str, BaseIdentity] = field(default_factory=dict)

    def __call__(self, version: Version) -> Iterable[str]:
        """Sentences about a version whose base is here and another."""
        base = version.summary.base
        name = version.summary.base_name
        if not base.get("weights_sha256"):
            if name:
                self.unknown[name] = "the adapter does not record its hash"
            return []
        recorded = BaseIdentity.from_dict(dict(base))
        asked = str(version.summary.model or name)
        try:
            here = self._identity(asked, recorded.revision)
        except ModelError as error:
            return [f"its base {asked} is damaged: {error}"]
        if here is None:
            self.unknown[asked] = "it is not on this machine under that name"
            return []
        differing = recorded.differences(here)
        if not differing:
            self.same.add(asked)
        return [
            f"its base {asked} has changed: {_PARTS[part]} "
            f"{getattr(recorded, part + '_sha256')[:12]}… were trained on, and "
            f"{getattr(here, part + '_sha256')[:12]}… are there"
            for part in differing
        ]

    def _identity(self, name: str, revision: str | None) -> BaseIdentity | None:
        key = f"{name}@{revision}"
        if key not in self._known:
            pinned = revision if revision and not revision.startswith("sha256:") else None
            # An adapter beside the base's own files does not change them.
            spec = ModelSpec(model=name, revision=pinned, ignore_adapter=True)
            where = find(spec)
            if where is None:
                return None
            known = identify(spec)
            # Remembered hashes go by size and time; what is asked here is the bytes.
            fresh = hash_files(weight_files(where.folder))
            self._known[key] = BaseIdentity(
                known.name, known.revision, fresh, known.tokenizer_sha256, known.template_sha256
            )
        return self._known[key]
