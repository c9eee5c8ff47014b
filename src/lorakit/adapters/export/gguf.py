"""A GGUF adapter, which llama.cpp loads beside a GGUF base (`--lora FILE`).

llama.cpp adds ``adapter.lora.alpha / rank · B (A x)`` with the rank of that very pair
(its `llama_adapter_lora_weight::get_scale`), so ranks may differ, and anything else that makes a
scale (rsLoRA, an alpha of its own for a module) is folded into B. Ranks are padded with zeros to a
multiple of 8: ik_llama.cpp 0.1.5 multiplies rows in steps of 8 and reads past the end of others,
which gives other logits at every call. Two tensors a module, beside the
name of the weight: ``.lora_a`` (rank, in) and ``.lora_b`` (out, rank), the former transposed for
the embedding, where llama.cpp looks rows up. The tokens from which on an adapter acts are in the file;
llama-server heeds them, and llama-cli has any adapter on from the first token.
"""

from pathlib import Path
from typing import Literal

import gguf
import torch
from torch import Tensor

from lorakit.adapters.experts_refused import refuse_beside, refuse_experts
from lorakit.adapters.export.families import GgufBase
from lorakit.adapters.export.fold import commonest_alpha, with_alpha
from lorakit.adapters.pairs import Pair, StoredAdapter
from lorakit.errors import AdapterError
from lorakit.files.whole import write_file
from lorakit.lora.variant import Capability, require_capability

AdapterType = Literal["f32", "f16"]
_TYPES = {"f32": torch.float32, "f16": torch.float16}
_STEP = 8
_FILE_TYPES = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}


def write_gguf_adapter(
    adapter: StoredAdapter, file: str | Path, *, base: GgufBase, kind: AdapterType = "f32"
) -> Path:
    """Write an adapter as a GGUF file for llama.cpp.

    Args:
        adapter: what `read_stored` gave.
        file: where; nothing may be there.
        base: the form of its base model.
        kind: number format of A and B.

    Raises:
        AdapterError: llama.cpp does not take its variant, or has no place for a pair, or a number leaves float16; nothing is
            written.
        OutputError: the file is there already, or cannot be written.
    """
    for capability in (Capability.LLAMA_CPP, Capability.FOLD):
        require_capability(
            *(adapter.spec.variant, capability, adapter.source),
            "write the merged model instead: lorakit export --to gguf-merged",
        )
    refuse_beside(
        adapter,
        "no program of llama.cpp applies it",
        "write the merged model instead: lorakit export --to gguf-merged",
    )
    refuse_experts(
        adapter,
        "a GGUF adapter of lorakit has linear layers only",
        "write the merged model instead: lorakit export --to gguf-merged",
    )
    for path, pair in adapter.pairs.items():
        if pair.kind == "conv":
            raise AdapterError(
                f"{adapter.source}: {path} is a convolution, and llama.cpp has no low-rank one"
            )
        if reason := base.refusal(path):
            raise AdapterError(f"{adapter.source}: {reason}")
    ranks = {path: -(-pair.rank // _STEP) * _STEP for path, pair in adapter.pairs.items()}
    alpha = commonest_alpha(adapter.pairs, ranks)
    tensors: dict[str, Tensor] = {}
    for path, pair in adapter.pairs.items():
        folded = with_alpha(pair, alpha, ranks[path])
        for name, tensor in _tensors(path, folded, base).items():
            tensors[name] = tensor.to(_TYPES[kind])
            if not torch.isfinite(tensors[name]).all():
                raise AdapterError(
                    f"{adapter.source}: {path} holds a number that {kind} cannot: write f32"
                )

    def fill(partial: Path) -> None:
        writer = gguf.GGUFWriter(partial, base.architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        if Capability.POSITION in adapter.spec.variant.capabilities:
            key, kinds = gguf.Keys.Adapter.ALORA_INVOCATION_TOKENS, gguf.GGUFValueType
            writer.add_key_value(key, list(adapter.spec.alora), kinds.ARRAY, kinds.UINT32)
        writer.add_name(adapter.source.absolute().name)
        writer.add_file_type(_FILE_TYPES[kind])
        if adapter.config.base_name:
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, adapter.config.base_name)
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.contiguous().numpy())
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()

    return write_file(Path(file), fill, what="GGUF adapter")


def _tensors(path: str, pair: Pair, base: GgufBase) -> dict[str, Tensor]:
    name = base.tensor_name(path)
    A = pair.A.T if name == "token_embd.weight" else pair.A
    return {f"{name}.lora_a": A, f"{name}.lora_b": base.rows(path, pair.B)}
