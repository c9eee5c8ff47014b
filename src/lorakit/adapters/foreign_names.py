"""Names of tensors that trainers write around peft's own, read as what they mean.

    base_model.model.PATH.lora_A.weight            peft's own
    base_model.model.PATH.lora_A.default.weight    the adapter's name left in: model.state_dict() saved by hand
    PATH.lora_A.weight                             without peft's prefix; or with the prefix twice
    module.…, _orig_mod.…, _fsdp_wrapped_module.…  saved from inside DDP, torch.compile, FSDP, …

peft (0.21) reads the second; the tensors of the others it leaves out, so that the base answers. Each of them
means one module and no other, so it is read, and a note says how the file calls it.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from lorakit.adapters.names import PREFIX
from lorakit.adapters.peft_names import renamed
from lorakit.errors import AdapterError

# Modules that torch puts around others: DDP and DataParallel in front, the others anywhere.
_FRONT = ("module.", "_forward_module.")
_WRAPPERS = {
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_orig_mod",
    "_forward_module",
}
_PART = r"lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
# peft's own endings, and the same with the name of an adapter inside.
_OWN = re.compile(
    r"\.(lora_[AB]\.(weight|bias)|lora_embedding_[AB]|lora_magnitude_vector|lora_[AB])$"
)
_NAMED = re.compile(rf"\.(?P<part>{_PART})\.(?P<name>[^.]+)(?P<end>\.weight|\.bias)?$")


def own_names(
    file: Path, names: Iterable[str], moved: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """peft's own name of every tensor in a file, and notes about those that have another.

    Args:
        file: for messages.
        names: of all its tensors. What is no part of a pair keeps its name.
        moved: paths in the file by the paths of the layers, as lorakit.json has them for peft's sake;
            they are not noted.

    Raises:
        AdapterError: the file holds several adapters, or two tensors that mean one.
    """
    own = renamed(names, {there: path for path, there in moved.items()})
    at_home, adapters = dict(own), set[str]()
    for name in own:
        own[name], adapter = _own(own[name])
        adapters |= {adapter} if adapter else set()
    if len(adapters) > 1:
        raise AdapterError(
            f"{file} holds {len(adapters)} adapters ({', '.join(sorted(adapters))}): save each into a "
            "folder of its own, model.save_pretrained(FOLDER, selected_adapters=[NAME]) in peft"
        )
    first: dict[str, str] = {}
    for name, meant in own.items():
        if meant in first:
            raise AdapterError(
                f"{file} holds {first[meant]} and {name}, which mean the same tensor"
            )
        first[meant] = name
    changed = [name for name, meant in own.items() if at_home[name] != meant]
    if not changed:
        return own, ()
    note = (
        f"{len(changed)} tensors have other names in the file than peft gives them, such as "
        f"{changed[0]}, read as {own[changed[0]]}"
    )
    return own, (note,)


def _own(name: str) -> tuple[str, str | None]:
    """peft's own name, and the name of the adapter that stood in it."""
    bare, adapter = name, None
    if not _OWN.search(name):
        found = _NAMED.search(name)
        if found is None:
            return _with_prefix(name) if _is_embedding_copy(name) else name, None
        adapter = found["name"]
        end = "" if found["part"] == "lora_magnitude_vector" else found["end"] or ""
        bare = f"{name[: found.start()]}.{found['part']}{end}"
    return _with_prefix(bare), adapter


def _is_embedding_copy(name: str) -> bool:
    """A whole weight that peft keeps beside a pair on an embedding."""
    return name.endswith(".base_layer.weight") or name.startswith((PREFIX, "module." + PREFIX))


def _with_prefix(name: str) -> str:
    path = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    while path.startswith(_FRONT) or path.startswith(PREFIX + PREFIX):
        front = next((front for front in _FRONT if path.startswith(front)), PREFIX)
        path = path[len(front) :]
    return path if path.startswith(PREFIX) else PREFIX + path
