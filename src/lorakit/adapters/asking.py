"""What an adapter records of how it is asked: its base by a lasting name, and how its rows were mapped.

provenance["asking"] = {"model": …, "revision": …, "prompt": …, "completion": …, "text": …}
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.models.default import NAME
from lorakit.models.spec import ModelSpec

MAPPING = ("prompt", "completion", "text")
"""Options that say how a row becomes a prompt and an answer, or a text."""


def asking_of(base: ModelSpec, mapping: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What to record of a base and a mapping of rows; a folder is recorded by its full path."""
    known = mapping or {}
    return {
        "model": _lasting(base.model),
        "revision": base.revision,
        **{name: known.get(name) for name in MAPPING},
    }


def asking_in(provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    """What was recorded by `asking_of`; in an older record from the configuration of its run."""
    known = provenance or {}
    asking = known.get("asking")
    if isinstance(asking, Mapping):
        return dict(asking)
    run = known.get("config")
    if not isinstance(run, Mapping):
        return {}
    # Their templates were filled before a backslash and an n meant a newline.
    mapping = {
        name: value.replace("\\n", "\\\\n").replace("\\t", "\\\\t")
        for name in MAPPING
        if isinstance(value := run.get(name), str)
    }
    return {name: run.get(name) for name in ("model", "revision")} | mapping


def mapping_in(provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    """How the rows were mapped, by option; empty where their columns were recognised."""
    asking = asking_in(provenance)
    return {name: str(asking[name]) for name in MAPPING if asking.get(name)}


def common_asking(
    provenances: Sequence[Mapping[str, Any] | None], notes: list[str]
) -> dict[str, Any]:
    """What an adapter made of others records: their base, and their mapping where they have one.

    Args:
        provenances: of the parts; the first that names a base decides what it is called.
        notes: appended to where the mappings differ.
    """
    asked = [asking_in(each) for each in provenances]
    base = next((each for each in asked if each.get("model")), {})
    mappings = [mapping_in(each) for each in provenances]
    common = mappings[0] if mappings and all(m == mappings[0] for m in mappings) else {}
    if mappings and not common and any(mappings):
        notes.append(
            "the adapters were trained with different mappings of rows: none is recorded, so a "
            "prompt is sent as it is typed, and rows need --prompt and --completion"
        )
    found = {name: base.get(name) for name in ("model", "revision") if base.get(name)}
    return found | common


def _lasting(model: str) -> str:
    """A model's name that means the same in another working directory."""
    path = Path(model).expanduser()
    return str(path.absolute()) if model != NAME and path.exists() else model
