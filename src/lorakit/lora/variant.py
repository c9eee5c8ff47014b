"""The seam behind which variants of LoRA stand: what one keeps, and what may be done with it.

A variant says which tensors a layer keeps beside its frozen weight, how they are initialised, what
they add to the weight, and what else may be done with them. Whoever combines, cuts, merges, serves
or exports an adapter asks for a `Capability`, never for the name of a variant. `variants.py` lists
the variants there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from lorakit.errors import AdapterError, InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lorakit.lora.kinds import Geometry


class Capability(Enum):
    """What may be done with the tensors of a variant; the value completes "it can …"."""

    KERNELS = "be computed as W x + s·B (A x), which is all that the kernels compute"
    FACTOR = "multiply each output of W x + s·B (A x) by a factor of its own"
    POSITION = "act from a position of a text on, and leave the tokens before it to the base"
    DROPOUT = "drop inputs of a low-rank path"
    ADDED_BIAS = "have a trained bias beside each pair (lora_bias)"
    JOBS = "be trained beside other adapters on the same base"
    SUM = "be summed with other adapters"
    SHRINK = "be cut to a lower rank by its singular values"
    FOLD = "have its scale moved into B"
    MERGE = "be merged into the weight of its base"
    MERGE_ROWS = "be merged into files, one block of rows after the other"
    SLOTS = "be served from slots, beside other adapters on the same base"
    VLLM = "be loaded by vLLM"
    LLAMA_CPP = "be loaded by llama.cpp"


class WeightRows(Protocol):
    """A frozen weight W, (out_features, in_features, *kernel), read row by row: a layer's, or a file's."""

    def squares(self) -> Tensor:
        """‖W_o‖² of each row, (out_features,), float32 at least."""

    def products(self, A: Tensor) -> Tensor:
        """W Aᵀ, (out_features, rank), in the dtype of `squares`; A: (rank, in_features, *kernel)."""


class Variant(Protocol):
    """One way to adapt a frozen weight W.

    Tensors go by name. "A" and "B" are there always; a variant may keep more. W and ΔW are
    (out_features, in_features, *kernel) here, whatever layout the base keeps.
    """

    @property
    def name(self) -> str:
        """How messages call it, such as rsLoRA."""

    @property
    def options(self) -> frozenset[str]:
        """The true-or-false fields of `LoraSpec` that are on together where it is meant."""

    @property
    def peft_keys(self) -> frozenset[str]:
        """The true-or-false keys of peft's configuration that are on together where it is meant."""

    @property
    def peft_suffixes(self) -> Mapping[str, str]:
        """The ends of peft's tensor names, for the tensors beside A and B."""

    @property
    def scale_formula(self) -> str:
        """How s is made, in words for a model card."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What may be done with its tensors."""

    def scale(self, alpha: float, rank: int) -> float:
        """s, the factor of B·A."""

    def unfit(self, geometry: Geometry) -> str | None:
        """Why a module of this geometry cannot be adapted so, and what to do; None where it can."""

    def tensors(self, geometry: Geometry, rank: int) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor of one layer, A and B first."""

    def initialise(
        self,
        tensors: Mapping[str, Tensor],
        weight: WeightRows,
        generator: torch.Generator,
        *,
        geometry: Geometry,
        how: str,
    ) -> None:
        """Fill the tensors in place so that ΔW = 0.

        Args:
            tensors: of one layer; nothing is drawn for tensors on the meta device.
            weight: W.
            generator: of the CPU, so that the same seed gives the same bits on every device.
            geometry: of the layer.
            how: kaiming or gaussian, as `LoraSpec.init` has it.
        """

    def delta(self, tensors: Mapping[str, Tensor], weight: Tensor, s: float) -> Tensor:
        """ΔW, what merging adds to W, in float32 (float64 of float64 tensors).

        Args:
            tensors: of one layer.
            weight: W.
            s: the scale.
        """

    def factor(self, tensors: Mapping[str, Tensor], weight: WeightRows, s: float) -> Tensor | None:
        """F of each output in y = f · (W x + s·B (A x)), (out_features,); None where it is 1.

        What it keeps as a constant in training is detached here.

        Args:
            tensors: of one layer.
            weight: W.
            s: the scale.
        """


def require_capability(
    variant: Variant,
    capability: Capability,
    who: object,
    instead: str,
    *,
    error: type[InputError] = AdapterError,
) -> None:
    """Stop where a variant lacks a capability.

    Args:
        variant: of the adapter.
        capability: what is about to be done with it.
        who: the adapter or module, as the user knows it.
        instead: what can be done instead.
        error: what is raised.

    Raises:
        AdapterError, or `error`: it lacks the capability; the text names it in words.
    """
    if capability not in variant.capabilities:
        raise error(f"{who}: {cannot(variant, capability)}; {instead}")


def cannot(variant: Variant, capability: Capability) -> str:
    """A clause that says what a variant cannot do."""
    return f"the variant {variant.name} cannot {capability.value}"
