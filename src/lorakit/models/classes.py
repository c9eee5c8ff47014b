"""Which class of transformers predicts the next token of a text for a configuration.

Models of images, video or sound beside text are among them: on rows of text alone their language
tower runs, and their other towers do not.
"""

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

from lorakit.models.devices import torch_dtype
from lorakit.models.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def class_of(
    config: "PretrainedConfig", made_for: Sequence[str], remote: Container[str] = ()
) -> Any:
    """What loads a model of this configuration, or None where nothing is known to.

    In this order: the causal language models; the models that read images or other input beside text
    and write text; and the class that the folder was saved from, where it is one that generates from
    token ids (the language tower of a larger model, saved by itself).

    Args:
        config: of the folder.
        made_for: `architectures` of its config.json.
        remote: names of auto classes that the folder brings its own code for.
    """
    import transformers

    autos = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
    for name in autos:
        auto: Any = getattr(transformers, name)
        if name in remote or type(config) in auto._model_mapping:
            return auto
    for name in made_for:
        cls = getattr(transformers, name, None)
        if cls is not None and cls.config_class is type(config) and cls.can_generate():
            return cls
    return None


def built_empty(cls: Any, config: "PretrainedConfig", spec: ModelSpec) -> "PreTrainedModel":
    """A model of a class that `class_of` gave, with fresh weights, on torch's default device."""
    dtype = torch_dtype(spec)
    if hasattr(cls, "_model_mapping"):
        return cls.from_config(config, dtype=dtype, trust_remote_code=spec.trust_remote_code)
    return cls._from_config(config, dtype=dtype)
