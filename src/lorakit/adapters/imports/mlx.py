"""An adapter folder of mlx-lm: adapters.safetensors and adapter_config.json.

    y = W x + scale · (x lora_a) lora_b        lora_a (in, r)   lora_b (r, out)

Both are the transposes of peft's. What `scale` and an `alpha` beside it mean depends on the version that
trained the adapter, and the folder does not name it. What its settings hold tells most versions apart:

    mlx-lm              its settings hold                    the update is multiplied by
    up to 0.13          neither of the two below             scale · alpha / rank
    0.14.0, 0.14.1      use_dora                             scale · alpha / rank
    0.14.2 to 0.18      use_dora                             scale; `alpha` is written and not used
    0.19 and later      fine_tune_type                       scale; 0.19 to 0.2x still write an `alpha`

Where `use_dora` stands alone, `scale` alone counts, and a note says so.

Source: mlx_lm/tuner/lora.py, mlx_lm/lora.py of these versions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lorakit.adapters.imports.fitting import find_module, kinds_of
from lorakit.adapters.pairs import Pair
from lorakit.adapters.peft_config import read_json
from lorakit.errors import AdapterError, did_you_mean
from lorakit.files.tensors import read_tensors, require_finite

TENSORS, CONFIG = "adapters.safetensors", "adapter_config.json"
_SIDES = (".lora_a", ".lora_b")


def read_mlx(folder: Path, model: nn.Module) -> tuple[dict[str, Pair], tuple[str, ...]]:
    """The pairs of an mlx-lm folder, by the paths of their modules in the base; and notes.

    Args:
        folder: what `mlx_lm.lora` wrote.
        model: the base, which may be on the meta device; mlx-lm names modules as transformers does.

    Raises:
        AdapterError: a file is missing or broken, the tuning was no LoRA, or a tensor is no part of
            a pair of this base.
    """
    rank, scale, notes = _settings(folder / CONFIG)
    file = folder / TENSORS
    tensors = read_tensors(file)
    require_finite(file, tensors)
    kinds = kinds_of(model)
    pairs: dict[str, Pair] = {}
    for name in dict.fromkeys(_module(file, name) for name in tensors):
        for side in _SIDES:
            if name + side not in tensors:
                raise AdapterError(f"{file} lacks {name}{side}; its pair is there")
        a, b = (tensors[name + side] for side in _SIDES)
        if a.dim() != 2 or b.dim() != 2:
            raise AdapterError(f"{file}: {name} has one pair for each of several experts")
        A, B = a.T.float().contiguous(), b.T.float().contiguous()
        if A.shape[0] != rank or B.shape[1] != rank:
            raise AdapterError(
                f"{file}: lora_a and lora_b of {name} are {tuple(a.shape)} and {tuple(b.shape)}, "
                f"but {CONFIG} says that their rank is {rank}"
            )
        path = find_module(file, name, kinds)
        pairs[path] = Pair(A, B, scale * rank, scale, kinds[path])
    if not pairs:
        raise AdapterError(f"{file} holds no pair")
    return pairs, notes


def _settings(path: Path) -> tuple[int, float, tuple[str, ...]]:
    """Rank, scale, and what was decided about an `alpha`."""
    config = read_json(path)
    kind = config.get("fine_tune_type", "dora" if config.get("use_dora") else "lora")
    if kind != "lora":
        raise AdapterError(
            f"{path}: fine_tune_type is {kind!r}; lorakit reads 'lora'. mlx_lm.fuse makes an ordinary "
            "model of any kind"
        )
    given = config.get("lora_parameters")
    if not isinstance(given, Mapping):
        raise AdapterError(f"{path}: lora_parameters is missing; {did_you_mean('lora', config)}")
    rank, scale = given.get("rank"), _number(path, given, "scale")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise AdapterError(f"{path}: lora_parameters.rank is {rank!r}, not a whole number above 0")
    if given.get("alpha") is None:
        return rank, scale, ()
    alpha = _number(path, given, "alpha")
    older = scale * alpha / rank
    named = f"{path}: lora_parameters holds alpha {alpha:g} beside scale {scale:g}"
    if "fine_tune_type" in config:
        note = f"{named}; mlx-lm from 0.14.2 on does not use it, so the scale is {scale:g}"
        return rank, scale, (note,)
    if "use_dora" in config:
        note = (
            f"{named}; the scale is {scale:g}, as in mlx-lm 0.14.2 and later. If 0.14.0 or 0.14.1 "
            f"trained it, the scale is {older:g}: set scale to that in the file, and remove alpha"
        )
        return rank, scale, (note,)
    note = (
        f"{named}; mlx-lm before 0.14 multiplied by scale · alpha / rank, so the scale is {older:g}"
    )
    return rank, older, (note,)


def _number(path: Path, given: Mapping[str, Any], key: str) -> float:
    value = given.get(key)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value < float("inf")
    ):
        raise AdapterError(f"{path}: lora_parameters.{key} is {value!r}, not a number above 0")
    return float(value)


def _module(file: Path, name: str) -> str:
    for side in _SIDES:
        if name.endswith(side):
            return name.removesuffix(side)
    what = "a DoRA magnitude" if name.endswith(".m") else "no lora_a or lora_b"
    raise AdapterError(f"{file} holds {name}, {what}: lorakit reads plain LoRA")
