"""Which linear layers of a model are kept quantized: those of the base, or those that transformers would take."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lorakit.errors import ModelError, TargetError
from lorakit.files.header import StoredTensor
from lorakit.models.weights import find


@dataclass(frozen=True)
class Quantizable:
    """Linear layers by what becomes of them.

    Attributes:
        names: of the tensors that are quantized.
        skipped: paths of the linear layers that are not: what config.json has to list.
    """

    names: tuple[str, ...]
    skipped: tuple[str, ...]


def choose(
    model: Any, held: Mapping[str, StoredTensor], quantized: Collection[str] | None
) -> Quantizable:
    """Choose the weights to quantize.

    Args:
        model: of transformers, on the meta device.
        held: the tensors of its files, dequantized.
        quantized: tensors that the base quantizes; None of a base in full precision: every
            `torch.nn.Linear` then but the output head, what is tied, and what transformers keeps wide.

    Raises:
        TargetError: there is none.
        ModelError: the files call a weight otherwise than the model, or the base quantizes what is no
            linear layer.
    """
    linear = [path for path, module in model.named_modules() if type(module) is nn.Linear]
    wide = kept_wide(model) if quantized is None else set()
    places = find(model, [f"{path}.weight" for path in linear], held)
    names, skipped = [], []
    for path in linear:
        place = places[f"{path}.weight"]
        if path in wide or (quantized is not None and place.name not in quantized):
            skipped.append(path)
            continue
        if place.name != f"{path}.weight":
            raise ModelError(
                f"{place.file} calls the weight of {path} {place.name}: a quantized folder of such a model "
                "is not written; merge without --quantize"
            )
        names.append(place.name)
    if quantized is not None and (strange := sorted(set(quantized) - set(names))):
        raise ModelError(
            f"the base quantizes {strange[0]}, which is no linear layer of the model: a quantized folder of "
            "it is not written; merge without --quantize"
        )
    if not names:
        raise TargetError(
            f"{type(model).__name__} has no linear layer that bitsandbytes would quantize: merge without "
            "--quantize"
        )
    # GPT-2's transposed layers are packed by transformers too, the other way round.
    others = [p for p, m in model.named_modules() if type(m).__name__ == "Conv1D"]
    return Quantizable(tuple(names), (*skipped, *others))


def left_out(chosen: Quantizable) -> str | None:
    """A sentence for people on linear layers that stay as they are."""
    if not chosen.skipped:
        return None
    more = len(chosen.skipped) - 3
    such = ", ".join(chosen.skipped[:3]) + (f" and {more} more" if more > 0 else "")
    return f"not quantized, and listed in config.json as such: {such}"


def kept_wide(model: Any) -> set[str]:
    """Paths of linear layers that transformers does not quantize by itself (5.24).

    Args:
        model: of transformers, with or without pairs.
    """
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    last = [name for name, _ in model.named_parameters()][-1]
    head = model.get_output_embeddings()
    heads = {path for path, module in model.named_modules() if module is head}
    kept = [*(getattr(model, "_keep_in_fp32_modules", None) or ())]
    named = {name.rpartition(".")[0] for name in (*tied, *tied.values(), last)}
    named = {path.removesuffix(".base") for path in named}
    inside = {p for p, _ in model.named_modules() if any(part in p.split(".") for part in kept)}
    return named | heads | inside
