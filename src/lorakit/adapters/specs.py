"""How adapters are combined and shrunk: frozen descriptions, quick to import."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from lorakit.errors import ConfigError, did_you_mean
from lorakit.lora.limits import check_cut, check_density

Way = Literal["linear", "cat", "svd", "ties", "dare", "dare_ties", "factors"]
WAYS: tuple[str, ...] = get_args(Way)
_CUT, SPARSE = ("svd", "ties", "dare", "dare_ties"), ("ties", "dare", "dare_ties")


@dataclass(frozen=True)
class CombineSpec:
    """How adapters are put together.

    Raises:
        ConfigError: an unknown way, or an option that the way has no use for or lacks.
    """

    how: Way = field(
        default="linear",
        metadata={
            "help": "linear and cat: the exact weighted sum of the updates. svd: that sum at a "
            "lower rank. ties, dare, dare_ties: those methods on whole matrices, then a lower "
            "rank. factors: the sums of the A's and of the B's (peft's 'linear'; not exact)."
        },
    )
    rank: int | None = field(
        default=None,
        metadata={"help": "The highest rank of a module; for svd, ties, dare and dare_ties."},
    )
    energy: float | None = field(
        default=None,
        metadata={
            "help": "The share of a module's squared singular values that is kept, such as 0.99; "
            "gives each module the rank that needs."
        },
    )
    density: float | None = field(
        default=None,
        metadata={
            "help": "The share of a matrix's elements that is kept. Default: 0.2 for ties, 0.5 for "
            "dare and dare_ties."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the elements that dare drops."})

    def __post_init__(self) -> None:
        if self.how not in WAYS:
            raise ConfigError(f"how is {self.how!r}: {did_you_mean(self.how, WAYS)}")
        given = self.rank is not None or self.energy is not None
        if self.how in _CUT:
            if not given:
                raise ConfigError(f"{self.how} needs a rank or an energy to cut to")
            check_cut(self.rank, self.energy)
        elif given:
            raise ConfigError(f"{self.how} cuts nothing: leave rank and energy out, or take svd")
        if self.density is not None:
            if self.how not in SPARSE:
                raise ConfigError(f"{self.how} keeps every entry: density is for {SPARSE}")
            check_density(self.density)

    @property
    def share(self) -> float:
        """The density, or the way's default: TIES' paper keeps 20 %; DARE's p = 0.5 is mild."""
        if self.density is not None:
            return self.density
        return 0.2 if self.how == "ties" else 0.5


@dataclass(frozen=True)
class ShrinkSpec:
    """How far to cut.

    Raises:
        ConfigError: neither rank nor energy, or one out of range.
    """

    rank: int | None = field(
        default=None,
        metadata={"help": "The highest rank of a module; with --threshold, the mean over modules."},
    )
    energy: float | None = field(
        default=None,
        metadata={
            "help": "The share of the squared singular values that is kept, such as 0.99. Give it, "
            "a rank, or both: then both limits hold."
        },
    )
    threshold: bool = field(
        default=False,
        metadata={
            "help": "Apply one threshold to the singular values of all modules, so that modules "
            "get different ranks."
        },
    )

    def __post_init__(self) -> None:
        check_cut(self.rank, self.energy)
