"""Gates of a few inputs or outputs: too narrow for a pair of the rank that the rest of a model gets."""

from collections.abc import Iterable, Mapping

from torch import nn

from lorakit.lora.kinds import geometry_of
from lorakit.lora.spec import ALL_LINEAR, LoraSpec
from lorakit.lora.targets import first_hit, matches

NARROW = 8
"""Linear layers with a side below this are gates: `all-linear` leaves them out where the rank exceeds it."""


def too_narrow(
    modules: Mapping[str, nn.Module], chosen: Iterable[str], spec: LoraSpec
) -> dict[str, str]:
    """Gates that `all-linear` alone chose and that have no room for their rank, and why they are left out.

    A wider layer below the rank is an error, as a named one is: the rank is too high for the model then.
    """
    reasons = {}
    for path in chosen:
        if any(pattern != ALL_LINEAR and matches(pattern, path) for pattern in spec.targets):
            continue
        largest = geometry_of(modules[path], path).largest_rank()
        rank = first_hit(spec.rank_pattern, path, spec.rank)
        if largest < min(rank, NARROW):
            reasons[path] = f"rank {rank} is above {largest}, its smaller side; name it to adapt it"
    return reasons
