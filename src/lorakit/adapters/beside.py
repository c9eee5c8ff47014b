"""Tensors of an adapter's file that are no pair: modules whole, biases, rows of embeddings, as peft names them.

    PATH.weight, PATH.bias                      of a module in modules_to_save
    PATH.bias, PATH.base_layer.bias             bias: of a module without a pair, and with one
    PATH.lora_B.bias                            lora_bias: b in W x + s·(B A x + b)
    PATH.token_adapter.trainable_tokens_delta   trainable_token_indices: the rows themselves, no difference

Some trainers' files hold what matters while they train alone (VeLoRA's projections, MonteCLoRA's
samplers): what is left is plain LoRA.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from lorakit.adapters.names import PREFIX, whole_weight_of
from lorakit.adapters.refusals import merged_by_peft
from lorakit.errors import AdapterError, did_you_mean
from lorakit.lora.changing import changes_of
from lorakit.lora.spec import LoraSpec
from lorakit.lora.whole import Whole

ROWS = ".token_adapter.trainable_tokens_delta"
ADDED = ".lora_B.bias"
_OF_TRAINING = {
    ".lora_velora_embed": ("velora_config", "VeLoRA's projections"),
    ".lora_monteclora_sampler.": ("monteclora_config", "MonteCLoRA's samplers"),
}


def belongs(name: str, spec: LoraSpec) -> bool:
    """Whether a tensor of this name is what the configuration says is trained beside the pairs."""
    if not name.startswith(PREFIX):
        return False
    path, _, last = name[len(PREFIX) :].rpartition(".")
    if name.endswith(ROWS):
        return bool(spec.token_rows)
    if name.endswith(ADDED):
        return spec.lora_bias
    if spec.bias != "none" and last == "bias":
        return True
    # Of tied weights peft names one and keeps both.
    if spec.keep_ties and spec.modules_to_save and whole_weight_of(name) == path:
        return True
    parts = path.split(".")
    above = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(module.endswith(end) for module in above for end in spec.modules_to_save)


def without_training(
    tensors: Iterable[str], keys: Collection[str]
) -> tuple[list[str], tuple[str, ...]]:
    """Names of a file without those that matter in training alone, and a note of each kind.

    Args:
        tensors: all names.
        keys: of the configuration that are on and act in training alone.
    """
    kept, left = [], dict[str, int]()
    for name in tensors:
        why = next(
            (w for part, (key, w) in _OF_TRAINING.items() if part in name and key in keys), None
        )
        if why is None:
            kept.append(name)
        else:
            left[why] = left.get(why, 0) + 1
    notes = [
        f"{why} ({count} tensors) matter while it trains alone and were set aside: read as plain LoRA"
        for why, count in left.items()
    ]
    return kept, tuple(notes)


def module_path(name: str) -> str | None:
    """The path of the module that a tensor beside the pairs is of; None for a name without peft's prefix."""
    if not name.startswith(PREFIX):
        return None
    for end in (ROWS, ADDED):
        if name.endswith(end):
            return name[len(PREFIX) : -len(end)]
    return name[len(PREFIX) :].rpartition(".")[0].removesuffix(".base_layer")


def file_names(whole: Whole, adapted: Iterable[str]) -> tuple[str, ...]:
    """The names under which peft keeps a value, one for each module that holds it.

    Args:
        whole: of a model.
        adapted: paths of its modules with a pair.
    """
    path = whole.names[0].rpartition(".")[0]
    if whole.kind == "rows":
        return (PREFIX + path + ROWS,)
    if whole.kind == "added":
        return (PREFIX + path + ADDED,)
    if whole.kind == "bias":
        return (f"{PREFIX}{path}{'.base_layer' if path in adapted else ''}.bias",)
    return tuple(PREFIX + name for name in whole.names)


def values_in(
    file: Path, tensors: Mapping[str, Tensor], whole: Sequence[Whole], adapted: Iterable[str]
) -> tuple[list[Tensor], set[str]]:
    """The values of what an adapter changes beside its pairs, and the names of the tensors they are.

    Raises:
        AdapterError: a tensor is missing or misshapen, or weights that are tied differ.
    """
    values, used = [], set[str]()
    paths = set(adapted)
    for each in whole:
        names = [name for name in file_names(each, paths) if name in tensors]
        if not names:
            wanted = file_names(each, paths)[0]
            raise AdapterError(f"{file} lacks {wanted}; {did_you_mean(wanted, tensors)}")
        value = tensors[names[0]]
        for name in names:
            if tuple(tensors[name].shape) != each.shape:
                raise AdapterError(
                    f"{file}: {name} is {tuple(tensors[name].shape)}, and in this model it is "
                    f"{each.shape}: tokens were added, or the base is another. "
                    f"{merged_by_peft(file.parent)}"
                )
            if not tensors[name].equal(value):
                raise AdapterError(
                    f"{file}: {names[0]} and {name} differ, and ensure_weight_tying says that they "
                    "are one weight"
                )
        values.append(value)
        used.update(names)
    return values, used


def tensors_beside(model: nn.Module, adapted: Iterable[str]) -> dict[str, Tensor]:
    """What stands in a model beside its pairs, by peft's names."""
    paths = set(adapted)
    return {
        name: change.value.clone()
        for change in changes_of(model)
        for name in file_names(change.what, paths)
    }
