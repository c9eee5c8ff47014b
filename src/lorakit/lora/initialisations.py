"""The initialisations there are. A further one is a function that fills A and B, and one entry here."""

from lorakit.errors import ConfigError, did_you_mean
from lorakit.lora.init_minor import MICA
from lorakit.lora.init_random import GAUSSIAN, KAIMING, ORTHOGONAL
from lorakit.lora.init_rows import EVA, LORA_GA
from lorakit.lora.init_split import FAST, OLORA, PISSA, pissa_fast
from lorakit.lora.initialisation import Initialisation

INITIALISATIONS = {
    each.name: each for each in (KAIMING, GAUSSIAN, ORTHOGONAL, PISSA, OLORA, EVA, LORA_GA, MICA)
}


def initialisation_of(name: str) -> Initialisation:
    """The initialisation of a name.

    >>> initialisation_of("pissa_niter_4").splits
    True

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    if name in INITIALISATIONS:
        return INITIALISATIONS[name]
    if isinstance(name, str) and name.startswith(FAST):
        return pissa_fast(name)
    known = [*INITIALISATIONS, f"{FAST}N"]
    raise ConfigError(
        f"init must be one of {', '.join(known)}; it is {name!r}; {did_you_mean(str(name), known)}"
    )
