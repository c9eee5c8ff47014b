"""Layers whose pairs peft does not read: `all-linear` leaves them out, so that peft reads what it trains.

peft (0.21, `_check_lora_target_modules_mamba`) refuses an adapter that names some layers of state-space
models, because their kernels read the weight without calling the layer. And it renames the tensors of an
adapter by transformers' rules for older checkpoints; where one of them fits a layer's own name, and no
older name becomes it, peft finds the pair under no name (`adapters/peft_names.py` finds that out for a
model at hand). Both are known here alone.
"""

from collections.abc import Iterable

from torch import nn

from lorakit.lora.spec import ALL_LINEAR, LoraSpec
from lorakit.lora.targets import matches

_REFUSED_NAMES = ("out_proj", "conv1d")
_REFUSED_FAMILIES = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
# Ends of paths by family, as transformers 5.24 renames them: `tests/parity/test_peft_renaming.py`.
_LOST = dict.fromkeys(
    ("inkling2", "inkling2_loop", "inkling2_loop_text", "inkling2_text"),
    ("sconv.weight_proj", "convolution.weight_proj"),
)


def refused_by_peft(model_type: str | None, paths: Iterable[str]) -> list[str]:
    """Those of the paths for which peft refuses to load an adapter beside a model of this type."""
    if model_type not in _REFUSED_FAMILIES:
        return []
    return [path for path in paths if path.rsplit(".", 1)[-1] in _REFUSED_NAMES]


def unreadable(model: nn.Module, chosen: Iterable[str], spec: LoraSpec) -> dict[str, str]:
    """Layers that `all-linear` alone chose and that peft does not read, and why they are left out.

    Args:
        model: the base; one without a `config.model_type` has no such layers, in peft's eyes too.
        chosen: paths of its modules.
        spec: a pattern in `targets` that names them means them.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    paths = list(chosen)
    does = dict.fromkeys(refused_by_peft(model_type, paths), "loads no adapter with a pair on it")
    ends = _LOST.get(str(model_type), ())
    does |= {
        path: "finds a pair on it under no name"
        for path in paths
        if any(matches(end, path) for end in ends)
    }
    reasons = {}
    for path, what in does.items():
        if any(pattern != ALL_LINEAR and matches(pattern, path) for pattern in spec.targets):
            continue
        reasons[path] = (
            f"peft {what} beside a {model_type}; to adapt it for lorakit and for merging, add its name: "
            f"--targets {ALL_LINEAR},{path.rsplit('.', 1)[-1]}"
        )
    return reasons
