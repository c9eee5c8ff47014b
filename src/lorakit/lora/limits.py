"""What a rank, a share of energy or a density may be: checks that need no torch."""

from lorakit.errors import ConfigError


def check_cut(rank: int | None, energy: float | None) -> None:
    """Refuse a rank below 1 or a share outside (0, 1].

    Raises:
        ConfigError: neither is given, or one is out of range.
    """
    if rank is None and energy is None:
        raise ConfigError("give a rank or an energy to cut to")
    if rank is not None and rank < 1:
        raise ConfigError(f"rank must be at least 1; it is {rank}")
    if energy is not None and not 0.0 < energy <= 1.0:
        raise ConfigError(f"energy is a share in (0, 1]; it is {energy}")


def check_density(density: float) -> None:
    """Refuse a share outside (0, 1].

    Raises:
        ConfigError: it is.
    """
    if not 0.0 < density <= 1.0:
        raise ConfigError(f"density is the share of entries that stay, in (0, 1]; it is {density}")
