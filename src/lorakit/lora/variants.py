"""The variants of LoRA there are, and which of them options, keys and tensor names mean.

A further variant is one file that satisfies `Variant` and one entry in `VARIANTS`.
"""

from collections.abc import Collection, Mapping

from lorakit.errors import ConfigError
from lorakit.lora.activated import ActivatedLora, ActivatedRankStabilized
from lorakit.lora.dora import Dora, RankStabilizedDora
from lorakit.lora.plain import PlainLora, RankStabilizedLora
from lorakit.lora.variant import Variant

VARIANTS: tuple[Variant, ...] = (
    PlainLora(),
    RankStabilizedLora(),
    Dora(),
    RankStabilizedDora(),
    ActivatedLora(),
    ActivatedRankStabilized(),
)
PEFT_VALUES: Mapping[str, str] = {"alora_invocation_tokens": "alora"}
"""Keys of peft's configuration that hold a list of token ids and no flag, each with the field of
`LoraSpec` that holds the same."""


def variant_of(options: Mapping[str, object]) -> Variant:
    """The variant that the fields of a `LoraSpec` mean.

    >>> variant_of({"rank": 8, "rslora": True}).name
    'rsLoRA'

    Raises:
        ConfigError: fields are on that no variant has together.
    """
    known = {option for variant in VARIANTS for option in variant.options}
    on = {option for option in known if options.get(option)}
    for variant in VARIANTS:
        if variant.options == on:
            return variant
    raise ConfigError(_no_variant(on, [variant.options for variant in VARIANTS]))


def variant_in(config: Mapping[str, object]) -> Variant:
    """The variant that a configuration in peft's format means, as far as it is one of ours.

    Raises:
        ConfigError: keys are on that no variant has together.
    """
    on = {key for key in peft_keys() if config.get(key)}
    for variant in VARIANTS:
        if variant.peft_keys == on:
            return variant
    raise ConfigError(_no_variant(on, [variant.peft_keys for variant in VARIANTS]))


def variant_options() -> tuple[str, ...]:
    """Every field of `LoraSpec` that chooses a variant, sorted."""
    return tuple(sorted({option for variant in VARIANTS for option in variant.options}))


def peft_keys() -> tuple[str, ...]:
    """Every key of peft's configuration that chooses a variant, sorted."""
    return tuple(sorted({key for variant in VARIANTS for key in variant.peft_keys}))


def peft_suffixes() -> dict[str, str]:
    """The ends of peft's tensor names for tensors beside A and B, each with the tensor's name."""
    return {suffix: name for variant in VARIANTS for name, suffix in variant.peft_suffixes.items()}


def names() -> str:
    """What there is, in words.

    >>> names()
    "LoRA, rsLoRA, DoRA, DoRA with rsLoRA's scale, activated LoRA and activated rsLoRA"
    """
    *first, last = [variant.name for variant in VARIANTS]
    return f"{', '.join(first)} and {last}" if first else last


def _no_variant(on: Collection[str], known: Collection[Collection[str]]) -> str:
    sets = [" with ".join(sorted(keys)) for keys in known if keys]
    return (
        f"{' and '.join(sorted(on))} are on together, and no variant has both; lorakit does "
        f"{names()} ({', '.join(sets)})"
    )
