"""Arithmetic on whole updates ΔW_i of one module: what TIES and DARE do before they are summed.

An update here is already multiplied by its weight: τ_i = w_i · ΔW_i. A negative weight is the
negated update, and takes part in the election of signs as such.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lorakit.lora.limits import check_density


def trim(update: Tensor, density: float) -> Tensor:
    """The largest entries by magnitude, this share of them; zero elsewhere.

    At least one entry stays. TIES trims over all modules at once; trimming module by module, as
    peft does too, needs the memory of one module, and no module vanishes.

    Args:
        update: any shape.
        density: share that stays, in (0, 1].

    Raises:
        ConfigError: the density is out of range.

    Source: Yadav et al., arXiv 2306.01708, section 3, step 1.
    """
    check_density(density)
    flat = update.flatten()
    count = max(int(density * flat.numel()), 1)
    if count == flat.numel():
        return update.clone()
    kept = torch.zeros_like(flat)
    places = flat.abs().topk(count).indices
    kept[places] = flat[places]
    return kept.view_as(update)


def drop(update: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Each entry kept with probability `density` and divided by it, else zero; the mean is kept.

    Args:
        update: any shape.
        density: share that stays, in (0, 1]; DARE's drop rate p is 1 - density.
        generator: of the CPU, drawn from once: entry k of the flattened update stays where the
            k-th number of `torch.rand` in float64 is below the density.

    Raises:
        ConfigError: the density is out of range.

    Source: Yu et al., arXiv 2311.03099, section 3.2.
    """
    check_density(density)
    draw = torch.rand(update.numel(), generator=generator, dtype=torch.float64)
    stays = (draw < density).view_as(update).to(update.device)
    return update * stays / density


def elect(updates: Sequence[Tensor]) -> Tensor:
    """Entry by entry, the mean of the updates that have the elected sign.

        γ = sign(Σ_i τ_i)        τ = Σ_{i: sign(τ_i) = γ} τ_i / |{i: sign(τ_i) = γ}|

    A sum of exactly zero elects the positive sign. Where no update has an entry the result is
    zero.

    Args:
        updates: of one shape, zero where they were trimmed or dropped.

    Source: Yadav et al., arXiv 2306.01708, section 3, steps 2 and 3 (with λ = 1; weights scale
    the updates before).
    """
    total = torch.zeros_like(updates[0])
    for update in updates:
        total += update
    elected = torch.where(total >= 0, 1.0, -1.0).to(total.dtype)
    sums, counts = torch.zeros_like(total), torch.zeros_like(total)
    for update in updates:
        agrees = update.sign() == elected
        sums += torch.where(agrees, update, torch.zeros_like(update))
        counts += agrees
    return sums / counts.clamp(min=1)
