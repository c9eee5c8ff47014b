"""The arms of a comparison: what of a model is trained, and what is kept of it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lorakit.comparing.spec import CompareSpec
from lorakit.config import RunConfig
from lorakit.experiments.measuring import save_pairs
from lorakit.kernels.packed.counting import count_parameters
from lorakit.lora import LoraSpec, attach, lora_layers, plan
from lorakit.models.spec import FULL as UNPACKED
from lorakit.run.session import Session

FULL = "full fine-tuning"


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        kind: "full" trains every parameter of the base, "lora" pairs beside it.
        lora: the pairs; None for full fine-tuning.
        start: added to a seed for A's initialisation alone, so that two arms of one method differ
            by nothing but chance.
        base_dtype: how the base is held, where that is not as the trial's options say.
    """

    kind: Literal["full", "lora"]
    lora: LoraSpec | None = None
    start: int = 0
    base_dtype: str | None = None


@dataclass(frozen=True)
class Arm:
    """A method under the name that the page gives it; nothing is computed from the name."""

    name: str
    method: Method


def arms_of(spec: CompareSpec, lora: LoraSpec, base_dtype: str = UNPACKED) -> tuple[Arm, ...]:
    """Full fine-tuning first, one LoRA arm a rank, and the control where it is asked for.

    Args:
        spec: ranks and control.
        lora: of the LoRA arms, but for the rank.
        base_dtype: how the LoRA arms hold the base; full fine-tuning changes every weight of it, and
            has it in full precision.
    """
    held = None if base_dtype == UNPACKED else base_dtype
    beside = f", base in {held}" if held else ""
    ranks = [replace(lora, rank=rank) for rank in spec.ranks]
    arms = [Arm(FULL, Method("full"))]
    arms += [
        Arm(f"LoRA r={each.rank}{beside}", Method("lora", each, base_dtype=held)) for each in ranks
    ]
    if spec.control:
        again = Method("lora", ranks[0], start=500_009, base_dtype=held)
        arms.append(Arm(f"LoRA r={ranks[0].rank}{beside}, again", again))
    return tuple(arms)


def prepare(model: Any, method: Method, seed: int) -> int:
    """Make a frozen base trainable in the method's way, in place.

    Returns:
        How many parameters are trained; a tied weight counts once.
    """
    if method.kind == "full":
        model.requires_grad_(True)
    else:
        assert method.lora is not None
        attach(model, method.lora, seed=seed + method.start)
        return sum(layer.target.trainable for layer in lora_layers(model).values())
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def trained_parameters(model: Any, method: Method) -> int:
    """How many parameters the method would train of a base."""
    if method.kind == "full":
        return count_parameters(model)
    assert method.lora is not None
    return plan(model, method.lora).trainable


def save_trained(
    session: Session, method: Method, folder: Path, config: RunConfig
) -> tuple[Path, int]:
    """Write what one task needs of its own: an adapter folder, or a whole model's weights.

    Returns:
        The folder, and the bytes in it.
    """
    if method.kind == "lora":
        weights = folder / "adapter"
        save_pairs(session, weights, config)
    else:
        weights = folder / "model"
        session.model.save_pretrained(weights)
    return weights, sum(file.stat().st_size for file in weights.rglob("*") if file.is_file())
