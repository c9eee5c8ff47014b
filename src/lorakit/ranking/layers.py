"""Ranks that differ by layer, at the parameter count of one rank for all.

The singular values of a trained adapter are the evidence: of all ways to spend the parameters, the
one that leaves the smallest squared error takes singular values in the order of σ² over what a unit
of rank costs in that module, until the budget is spent (greedy, which is optimal but for the last).
"""

from collections.abc import Mapping, Sequence


def allot(
    spectra: Mapping[str, Sequence[float]], costs: Mapping[str, int], budget: int
) -> dict[str, int]:
    """The rank of each module: at least 1, together at most `budget` parameters.

    Args:
        spectra: singular values of each module, from the largest down.
        costs: parameters of one unit of rank in each module.
        budget: parameters in all.

    >>> allot({"a": [3.0, 2.9], "b": [1.0, 0.1]}, {"a": 10, "b": 10}, 30)
    {'a': 2, 'b': 1}
    """
    ranks = dict.fromkeys(spectra, 1)
    left = budget - sum(costs[path] for path in spectra)
    offers = sorted(
        (
            (values[k] ** 2 / costs[path], path, k)
            for path, values in spectra.items()
            for k in range(1, len(values))
        ),
        key=lambda offer: (-offer[0], offer[1], offer[2]),
    )
    for _, path, k in offers:
        # In a module the values fall, so that its offers come in their order.
        if costs[path] <= left and ranks[path] == k:
            ranks[path] += 1
            left -= costs[path]
    return ranks


def rank_for_energy(spectra: Mapping[str, Sequence[float]], share: float) -> int:
    """The smallest rank for all modules that keeps this share of all squared singular values."""
    total = sum(value**2 for values in spectra.values() for value in values)
    longest = max(len(values) for values in spectra.values())
    for rank in range(1, longest + 1):
        energy = sum(value**2 for values in spectra.values() for value in values[:rank])
        if energy >= share * total:
            return rank
    return longest
