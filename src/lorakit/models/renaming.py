"""transformers' rules that rename tensors of older checkpoints of a model, as peft applies them to adapters."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

# Rules that touch one name at once are few: two for most, six in the worst family of transformers 5.24.
_MOST_RULES = 6


class Renamings:
    """The rules of one model, in their order.

    Args:
        rules: transformers' `WeightRenaming`s.
    """

    def __init__(self, rules: Sequence[Any]) -> None:
        self._rules = rules

    @classmethod
    def of(cls, model: Any) -> "Renamings":
        """Those that peft (0.21) applies to an adapter beside this model, which may be on the meta device.

        None where the type of the model has no rules of its own, as peft asks before it takes those of
        its parts.
        """
        from transformers import PreTrainedModel, conversion_mapping
        from transformers.core_model_loading import WeightRenaming

        if not isinstance(model, PreTrainedModel):
            return cls(())
        if conversion_mapping.get_checkpoint_conversion_mapping(model.config.model_type) is None:
            return cls(())
        rules = conversion_mapping.get_model_conversion_mapping(model)
        return cls([rule for rule in rules if isinstance(rule, WeightRenaming)])

    def newer(self, name: str) -> str:
        """What the rules make of a name."""
        for rule in self._rules:
            name = str(rule.rename_source_key(name)[0])
        return name

    def older(self, name: str) -> Iterator[str]:
        """Names that the rules might make this one of, those that differ least first.

        Each rule that fits is taken back or left, so not every name becomes this one again: `newer` tells.
        """
        backward = [rule.reverse_transform() for rule in reversed(self._rules)]
        fits = [rule for rule in backward if rule.rename_source_key(name)[0] != name]
        # A rule may fit only what another has made.
        others = [rule for rule in backward if rule not in fits]
        for count in range(1, min(len(fits), _MOST_RULES) + 1):
            for chosen in combinations(fits, count):
                older = name
                for rule in chosen:
                    older = str(rule.rename_source_key(older)[0])
                yield older
                for rule in others:
                    if (oldest := str(rule.rename_source_key(older)[0])) != older:
                        yield oldest
