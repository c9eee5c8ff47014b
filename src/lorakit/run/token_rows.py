"""`--train-tokens`: tokens by their text -> the rows of a model that are trained for them."""

from dataclasses import replace
from typing import Any

from lorakit.errors import ConfigError, did_you_mean
from lorakit.lora.sharing import tied_parameters
from lorakit.lora.spec import LoraSpec
from lorakit.lora.whole import input_embedding


def with_token_rows(spec: LoraSpec, model: Any, tokenizer: Any) -> LoraSpec:
    """The spec with rows in the place of texts.

    A token that is to be read and written has a row in the input embedding and one in the output
    head; where the two are tied it is one row.

    Args:
        spec: as it was given.
        model: the base.
        tokenizer: of the base.

    Raises:
        ConfigError: a text is no single token of the tokenizer.
    """
    if not spec.train_tokens:
        return spec
    known = tokenizer.get_vocab()
    ids = []
    for text in spec.train_tokens:
        if text in known:
            ids.append(known[text])
            continue
        parts = tokenizer.encode(text, add_special_tokens=False)
        if len(parts) != 1:
            raise ConfigError(
                f"train_tokens has {text!r}, which the base's tokenizer reads as {len(parts)} tokens; "
                + did_you_mean(text, tokenizer.get_added_vocab() or known)
            )
        ids.append(parts[0])
    rows = tuple(dict.fromkeys(ids))
    embedding = input_embedding(model)
    head = model.get_output_embeddings()
    paths = [path for path, module in model.named_modules() if head is not None and module is head]
    tied = [tie for tie in tied_parameters(model) if f"{embedding}.weight" in tie]
    apart = [path for path in paths if not any(f"{path}.weight" in tie for tie in tied)]
    return replace(spec, train_tokens=(), token_rows=dict.fromkeys((embedding, *apart), rows))
