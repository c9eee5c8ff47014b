"""`--merge-aware`: a run whose adapted layers compute what a quantized merge of them will."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lorakit.errors import ConfigError, TargetError
from lorakit.kernels.packed.counting import packing_of
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.kernels.packed.through_rounding import RoundedSum
from lorakit.lora import LoraLinear, Target, lora_layers
from lorakit.lora.variant import Capability, require_capability
from lorakit.merging.quantizable import kept_wide
from lorakit.training import TrainSpec

_ROUNDED = (nn.Linear, PackedLinear)


def check_one_adapter(spec: TrainSpec) -> None:
    """Refuse merge_aware in a run of several adapters.

    Raises:
        ConfigError: it is asked for.
    """
    if spec.merge_aware is not None:
        raise ConfigError(
            "merge_aware goes with one adapter: of several in one run each would need a quantized weight "
            "of its own; leave ranks and tasks out"
        )


def rounding_notes(
    model: Any, targets: Iterable[Target], spec: TrainSpec, *, dropout: float
) -> tuple[str, ...]:
    """Sentences for the user: what merge_aware does to a run, and which layers it leaves.

    Args:
        model: with or without pairs.
        targets: what is adapted.
        spec: says how, if at all.
        dropout: of the pairs.

    Raises:
        ConfigError: inputs are dropped, or the pairs are of a variant that is computed otherwise.
        TargetError: no adapted layer is quantized by a merge.
    """
    how = spec.merge_aware
    if how is None:
        return ()
    if dropout:
        raise ConfigError(
            f"dropout is {dropout:g}, and with merge_aware there is no low-rank path whose input could be "
            "dropped: W + s·B·A is one quantized weight; set dropout to 0"
        )
    targets = list(targets)
    for variant in {target.variant for target in targets}:
        for capability, instead in (
            (Capability.MERGE, "leave merge_aware out"),
            (
                Capability.KERNELS,
                "leave merge_aware out: `lorakit merge --quantize` says what arrived",
            ),
        ):
            who = f"merge_aware {how}"
            require_capability(variant, capability, who, instead, error=ConfigError)
    wide, paths = kept_wide(model), {target.path for target in targets}
    linear = {p for p, module in model.named_modules() if type(module) in _ROUNDED}
    linear = {path.removesuffix(".base") for path in linear} - wide
    if not paths & linear:
        raise TargetError(
            f"merge_aware {how}: no adapted layer is one that a quantized merge quantizes (linear layers of "
            "the blocks); leave merge_aware out, or adapt such layers"
        )
    notes = [
        f"merge-aware {how}: {len(paths & linear)} layers compute with W + s·B·A quantized, so that the "
        f"losses and answers of the adapter are those of `lorakit merge --quantize {how}`; their blocks "
        "are not fused, so that it is slower than forecast"
    ]
    if packing := packing_of(model):
        notes.append(
            f"the base is held in {packing}, and this run rounds its numbers with s·B·A: a merge of the same "
            "files in full precision rounds those, which lie up to half a step of the packing away"
        )
    if left := sorted(paths - linear):
        notes.append(
            f"a quantized merge leaves {_some(left)} in a float format, and so does this run"
        )
    if bare := sorted(linear - paths):
        notes.append(
            f"a merge of a base in full precision with --quantize {how} quantizes {_some(bare)} too, which "
            "have no pair: this run computes with them as they are"
        )
    return tuple(notes)


def round_layers(model: Any, spec: TrainSpec) -> None:
    """Let the adapted layers of a model compute with W + s·B·A quantized, where the run asks for it.

    Args:
        model: with pairs.
        spec: says how, if at all.
    """
    if spec.merge_aware is None:
        return
    wide = kept_wide(model)
    for path, layer in lora_layers(model).items():
        if isinstance(layer, LoraLinear) and type(layer.base) in _ROUNDED and path not in wide:
            layer.rounded = RoundedSum(spec.merge_aware)


@contextmanager
def rounding(model: Any, spec: TrainSpec) -> Iterator[None]:
    """`round_layers` for a while; afterwards the layers compute W x + s·B (A x) again."""
    round_layers(model, spec)
    try:
        yield
    finally:
        for layer in lora_layers(model).values():
            if isinstance(layer, LoraLinear):
                layer.rounded = None


def _some(paths: Sequence[str]) -> str:
    more = len(paths) - 3
    return ", ".join(paths[:3]) + (f" and {more} more" if more > 0 else "")
