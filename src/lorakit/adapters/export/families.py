"""How llama.cpp names and orders the weights of a base model.

Names come from gguf's own table (`get_tensor_name_map`). What the table does not say is which rows
llama.cpp's converter moves, so only families are here whose converter was read and is held against
this file in the tests: all leave the rows of a linear layer as they are but the llama family, whose
queries and keys are stored with the two halves of each head interleaved, because llama.cpp rotates
neighbours where transformers rotates halves.
"""

from dataclasses import dataclass
from typing import Any

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map
from torch import Tensor

from lorakit.errors import AdapterError, did_you_mean
from lorakit.models.dimensions import attention_heads, block_count

# transformers' model_type -> llama.cpp's architecture.
_FAMILIES = {
    "gemma2": MODEL_ARCH.GEMMA2,
    "gemma3_text": MODEL_ARCH.GEMMA3,
    "gpt2": MODEL_ARCH.GPT2,
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "phi3": MODEL_ARCH.PHI3,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
}
KNOWN = tuple(_FAMILIES)
_TIED = {"token_embd.weight": "output head", "output.weight": "embedding"}


@dataclass(frozen=True)
class GgufBase:
    """A base model, as far as an adapter of it depends on its form in GGUF.

    Attributes:
        family: transformers' model_type.
        blocks: number of its transformer blocks.
        heads, key_heads: attention heads of the queries, and of the keys and values.
        tied: whether its output head is its embedding.
    """

    family: str
    blocks: int
    heads: int
    key_heads: int
    tied: bool

    @classmethod
    def of(cls, config: Any) -> "GgufBase":
        """From the model's configuration, as transformers holds it."""
        text = config.get_text_config()
        # No family that lorakit writes for is without them; of others they are not asked.
        heads = attention_heads(config) or 0
        return cls(
            family=text.model_type,
            blocks=block_count(config) or 0,
            heads=heads,
            # Absent where every query head has keys of its own, as in GPT-2.
            key_heads=int(text.to_dict().get("num_key_value_heads") or heads),
            tied=bool(getattr(text, "tie_word_embeddings", False)),
        )

    @property
    def architecture(self) -> str:
        """llama.cpp's name of it.

        Raises:
            AdapterError: the family is not one that this file knows.
        """
        return str(MODEL_ARCH_NAMES[self._arch()])

    def tensor_name(self, path: str) -> str | None:
        """llama.cpp's name for the weight of the module at `path`; None where it has none."""
        names = get_tensor_name_map(self._arch(), self.blocks)
        found = names.get_name(key=path + ".weight", try_suffixes=(".weight",))
        return None if found is None else str(found)

    def refusal(self, path: str) -> str | None:
        """Why llama.cpp has no place for a pair on the module at `path`; None where it has."""
        name = self.tensor_name(path)
        if name is None:
            return f"llama.cpp's {self.architecture} architecture has no weight for {path}"
        if self.tied and name in _TIED:
            return (
                f"{path} shares its weight with the {_TIED[name]}, which llama.cpp keeps as one "
                "tensor: a pair beside it cannot mean one of the two alone. Merge the adapter, "
                "which unties them (lorakit merge), or train one without this target"
            )
        return None

    def rows(self, path: str, B_OR: Tensor) -> Tensor:
        """B with its rows in the order in which llama.cpp keeps those of the module's weight."""
        heads = {"q_proj": self.heads, "k_proj": self.key_heads}.get(path.rpartition(".")[2])
        if heads is None or self._arch() != MODEL_ARCH.LLAMA:
            return B_OR
        rows, rank = B_OR.shape
        halves = B_OR.reshape(heads, 2, rows // heads // 2, rank)
        return halves.transpose(1, 2).reshape(rows, rank)

    def _arch(self) -> MODEL_ARCH:
        if self.family not in _FAMILIES:
            raise AdapterError(
                f"lorakit does not know how llama.cpp orders the weights of a {self.family!r} "
                f"model; {did_you_mean(self.family, _FAMILIES)}. Merge the adapter instead: "
                "lorakit export --to gguf-merged"
            )
        return _FAMILIES[self.family]
